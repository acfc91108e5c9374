"""kill -9 at every moment of a conversion: the folder is complete or has no weights to load."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.synthetic import write_gates, write_noise
from converters import to_hf
from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE
from sgate_serve.errors import CheckpointError
from tests.benchmarks.tiny import TINY

SHARD_BYTES = {"one file": 2**32, "shards": 20_000}

# Forks once for every moment: the child converts and kills itself at its n-th file operation.
# Tensors are opened one by one while shards are written, so that moments lie within shards too.
KILLER = """
import itertools, os, signal, sys, threading
from pathlib import Path
import sgate_serve.models.config_check  # once, not in every child
from converters import to_hf
from converters.convert import ConvertOptions, convert

root, to_hf.SHARD_BYTES = Path(sys.argv[1]), int(sys.argv[2])

def convert_until(moment):
    seen, lock = 0, threading.Lock()
    def watch(event, arguments):
        nonlocal seen
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            with lock:
                seen += any(str(argument).startswith(str(root)) for argument in arguments)
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    convert(ConvertOptions(str(root / "base"), root / f"out-{moment}", root / "gates"))

for moment in itertools.count(1):
    child = os.fork()
    if not child:
        convert_until(moment)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(status)
"""


@pytest.fixture(params=SHARD_BYTES)
def killed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with base, gates and an out-N for every moment; only the last was not killed."""
    shard_bytes = SHARD_BYTES[request.param]
    monkeypatch.setattr(to_hf, "SHARD_BYTES", shard_bytes)
    write_noise(tmp_path / "base", TINY, num_shards=3, seed=0)
    write_gates(tmp_path / "gates", Checkpoint.open(tmp_path / "base"), closed=0.3, seed=0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(tmp_path), str(shard_bytes)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    yield tmp_path
    shutil.rmtree(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def state_of(out: Path, complete: dict[str, bytes]) -> str:
    """Say what a killed conversion left, having checked that it is one of the allowed states."""
    found = contents(out) if out.exists() else {}
    if {SINGLE_FILE, INDEX_FILE} & found.keys():
        assert found == complete
        return "complete"
    if out.exists():
        with pytest.raises(CheckpointError, match=r"holds neither|is missing"):
            Checkpoint.open(out)
    return "moving" if found else "staging"


def test_killed_at_any_moment_leaves_all_or_no_weights(killed: Path) -> None:
    outs = {int(out.name.removeprefix("out-")): out for out in killed.glob("out-*")}
    complete = contents(outs.pop(max(outs)))
    moments: dict[str, list[Path]] = {"staging": [], "moving": [], "complete": []}
    for out in outs.values():
        moments[state_of(out, complete)].append(out)
    # A moment within every tensor of the model at least.
    assert len(moments["staging"]) > len(Checkpoint.open(killed / "base").tensors)
    assert moments["complete"]

    base, gates = str(killed / "base"), killed / "gates"
    for out in moments["staging"][::8]:
        convert(ConvertOptions(base, out, gates))
        assert contents(out) == complete
    for out in moments["moving"][::8]:
        with pytest.raises(CheckpointError, match="is not empty; give a new folder"):
            convert(ConvertOptions(base, out, gates))
        convert(ConvertOptions(base, killed / f"again-{out.name}", gates))
        assert contents(killed / f"again-{out.name}") == complete


def test_nothing_is_written_before_every_header_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_noise(tmp_path / "base", TINY, num_shards=3, seed=0)
    last = max((tmp_path / "base").glob("*.safetensors"))
    os.truncate(last, last.stat().st_size - 1)
    made: list[object] = []
    monkeypatch.setattr(Path, "mkdir", lambda path, **_: made.append(path))
    with pytest.raises(CheckpointError, match="is truncated"):
        convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    assert made == []
