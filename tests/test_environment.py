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


X86 = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor @ 2.10GHz
flags\t\t: fpu sse4_2 avx f16c avx2 avx512f avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8 fma

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor @ 2.10GHz
flags\t\t: fpu avx
"""
ARM = """processor\t: 0
Features\t: fp asimd evtstrm aes crc32 asimddp sve i8mm bf16
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        (X86, "amx_bf16 amx_int8 amx_tile avx avx2 avx512_vnni avx512f avx_vnni f16c fma"),
        (ARM, "asimd asimddp bf16 i8mm sve"),
        ("", ""),
    ],
)
def test_the_instructions_that_decide_about_speed_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, flags: str
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(content)
    monkeypatch.setattr(environment, "CPU_INFO", file)
    assert hardware()["cpu_flags"] == flags.split()
    assert hardware()["cpu"] == "Intel(R) Xeon(R) Processor @ 2.10GHz" or content != X86


def test_gpu_names_come_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "NVIDIA_DRIVER", tmp_path)
    assert hardware()["gpus"] == []
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 35\n")
    assert hardware()["gpus"] == ["NVIDIA H200", "NVIDIA H200"]
