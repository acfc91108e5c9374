"""Memory, CPUs and GPUs that this process may use, with and without the limits of a container."""

from pathlib import Path

import pytest

from sgate_serve import environment
from sgate_serve.environment import cpu_ids, hardware, memory_bytes, num_cpus


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control group."""
    monkeypatch.setattr(environment, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(environment, "cpu_ids", lambda: [0, 1, 2, 3])
    return tmp_path


def test_without_limits_the_process_may_use_the_whole_machine(group: Path) -> None:
    physical = memory_bytes()
    (group / "memory.max").write_text("max\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert (memory_bytes(), num_cpus()) == (physical, 4)
    assert physical > 2**20 and cpu_ids()


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_is_limited_by_the_container(group: Path, file: str) -> None:
    (group / "memory").mkdir()
    (group / file).write_text("1048576\n")
    assert memory_bytes() == 2**20


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_cpus_are_limited_by_the_container(group: Path, quota: str, expected: int) -> None:
    (group / "cpu.max").write_text(f"{quota}\n")
    assert num_cpus() == expected


def test_gpu_names_come_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "NVIDIA_DRIVER", tmp_path)
    assert hardware()["gpus"] == []
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 35\n")
    assert hardware()["gpus"] == ["NVIDIA H200", "NVIDIA H200"]
