"""Footprint of serving: the size of an installation without torch, its start time and memory.

`python -m benchmarks.footprint --json FILE --model FOLDER` installs this checkout into a fresh
virtual environment, then starts `sgate serve FOLDER` several times and requests a completion as
soon as the server answers. The folder should contain its ONNX graph, as written by
`sgate convert --to hf,onnx`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from benchmarks.command import command_line, run_script
from sgate_serve.environment import hardware, library_versions
from sgate_serve.options import option

ROOT = Path(__file__).parent.parent
POLL_SECONDS = 0.01
START_SECONDS = 600.0
NAME, PROMPT = "model", "def "
NOTHING: Mapping[str, str] = MappingProxyType({})
# How many of the largest packages the record lists.
NUM_LISTED = 10


@dataclass(frozen=True)
class FootprintOptions:
    """The model to serve, and the number of starts."""

    model: str = option("sgate-demo/pruned", "folder to serve")
    starts: int = option(5, "number of measured starts of the server")


def install(venv: Path) -> dict[str, Any]:
    """Install this checkout; return the installed bytes and the largest packages."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    empty = _num_bytes(packages)
    # pip builds inside the folder that it is given.
    copy = venv.parent / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "sgate-demo"))
    subprocess.run([venv / "bin" / "pip", "install", "--quiet", str(copy)], check=True)
    sizes = {path.name: _num_bytes(path) for path in packages.iterdir()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:NUM_LISTED]
    return {
        "installed_bytes": sum(sizes.values()) - empty,
        "largest": {name: sizes[name] for name in largest},
        "has_torch": (packages / "torch").exists(),
    }


def _num_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def start_once(
    command: Sequence[str], prompt: str | list[int], environment: Mapping[str, str] = NOTHING
) -> dict[str, float]:
    """Start a server, stream one completion and stop it; return seconds and bytes of memory.

    `command` serves a model named `NAME` on any port; `environment` is added to this process's.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    try:
        address = urlsplit(process.stdout.readline().split()[-1])
        listening = time.perf_counter() - begun
        connection = HTTPConnection(str(address.hostname), address.port)
        while _status(connection) != 200:
            if time.perf_counter() - begun > START_SECONDS:
                raise RuntimeError(f"the server is not healthy after {START_SECONDS} s")
            time.sleep(POLL_SECONDS)
        healthy = time.perf_counter() - begun
        _read_first_token(connection, prompt)
        first = time.perf_counter() - begun
        used = {**memory_of(process.pid), "cpu": cpu_seconds(process.pid)}
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    return {"listening": listening, "healthy": healthy, "first_token": first, **used}


def _status(connection: HTTPConnection) -> int:
    connection.request("GET", "/health")
    response = connection.getresponse()
    response.read()
    return response.status


def _read_first_token(connection: HTTPConnection, prompt: str | list[int]) -> None:
    body = {"model": NAME, "prompt": prompt, "max_tokens": 8, "stream": True, "temperature": 0}
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"the completion failed: {response.read().decode()}")
    response.readline()


def memory_of(pid: int) -> Mapping[str, float]:
    """Return the resident memory of a process in bytes: now, at most, and of no file."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    names = {"rss_bytes": "VmRSS", "peak_rss_bytes": "VmHWM", "private_bytes": "RssAnon"}
    return {name: 1024.0 * int(fields[key].split()[0]) for name, key in names.items()}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def serve_words(model: str | Path) -> list[str]:
    return ["serve", str(model), "--port", "0", "--served-model-name", NAME]


def run(options: FootprintOptions) -> dict[str, Any]:
    """Install, start the server `starts` times, and return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-footprint-") as folder:
        venv = Path(folder) / "venv"
        installed = install(venv)
        sgate = venv / "bin" / "sgate"
        command = [str(sgate), *serve_words(options.model)]
        start_once(command, PROMPT)  # compiles the bytecode
        starts = [start_once(command, PROMPT) for _ in range(options.starts)]
    model = Path(options.model)
    # The record keeps only the folder's name.
    shown = replace(options, model=model.name)
    return {
        "command": command_line("footprint", shown),
        "options": asdict(shown),
        "installation": installed,
        "graph_bytes": _num_bytes(model / "onnx"),
        "medians": {name: median(start[name] for start in starts) for name in starts[0]},
        "starts": starts,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    run_script("footprint", __doc__, FootprintOptions, run)


if __name__ == "__main__":
    main()
