"""Large private memory is moved into huge pages, what was never written is not."""

import ctypes
import mmap
import platform
import threading
import time
from pathlib import Path

import pytest

from sgate_serve.engines.onnx import huge_pages
from sgate_serve.engines.onnx.huge_pages import huge_page_bytes, use_huge_pages

SIZE, WRITTEN = 2**26, 2**25


def memory_of(address: int, name: str) -> int:
    """Return a number of the mapping that an address is in, in bytes."""
    lines = iter(Path("/proc/self/smaps").read_text("utf-8").splitlines())
    for line in lines:
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(number, 16) for number in first.split("-"))
            if start <= address < stop:
                break
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_written_memory_moves_and_unused_memory_stays_unused() -> None:
    if huge_page_bytes() is None or kernel() < (6, 1):
        pytest.skip("this Linux does not form huge pages on request")
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(0, WRITTEN, mmap.PAGESIZE):
            memory[page] = 1
        first = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(first)
        before = {name: memory_of(address, name) for name in ("AnonHugePages", "Rss")}
        use_huge_pages()
        deadline = time.monotonic() + 30
        while memory_of(address, "AnonHugePages") < before["AnonHugePages"] + WRITTEN // 2:
            assert time.monotonic() < deadline, "no memory was moved"
            time.sleep(0.05)
        for thread in threading.enumerate():
            if thread.name == "huge-pages":
                thread.join(30)
        # The edges of what was written may be in half a huge page each.
        assert memory_of(address, "Rss") - before["Rss"] <= 2**22
        assert memory[0] == memory[WRITTEN - mmap.PAGESIZE] == 1
        del first


def test_nothing_happens_where_huge_pages_are_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    assert huge_page_bytes() is None  # another system
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert huge_page_bytes() == 2**21
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert huge_page_bytes() is None


def kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int(minor)
