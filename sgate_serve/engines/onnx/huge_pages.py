"""Huge pages for the weights of a session.

A decode step reads all weights once, which takes as many address translations as there are pages:
in pages of 4 KiB, they cost a lone stream some per cent of its speed. Where Linux does not give
huge pages to everybody, it gives them to whoever asks.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
MAPPINGS = Path("/proc/self/maps")
# madvise(2): allow huge pages, and form them now rather than by and by (since Linux 6.1).
HUGEPAGE, COLLAPSE = 14, 25
# Smaller mappings hold no weights that matter.
LEAST_BYTES = 2**24


def use_huge_pages() -> None:
    """Move this process's large private memory into huge pages, in the background.

    Memory that was never written stays unused. It takes about two seconds for each GiB, once.
    Nothing happens where Linux has no huge pages, or they are switched off.
    """
    size = huge_page_bytes()
    if size is not None:
        Thread(target=_collapse, args=(size,), name="huge-pages", daemon=True).start()


def _collapse(size: int) -> None:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, stop in _writable_memory():
        first, last = -(-start // size) * size, stop // size * size
        if last - first >= LEAST_BYTES:
            for advice in (HUGEPAGE, COLLAPSE):
                # What cannot be moved stays as it is.
                libc.madvise(first, last - first, advice)


def huge_page_bytes() -> int | None:
    """Return the size of a huge page; None where there are none, or they are switched off."""
    try:
        enabled = (SETTINGS / "enabled").read_text(encoding="ascii")
        size = int((SETTINGS / "hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if "[never]" in enabled else size


def _writable_memory() -> Iterator[tuple[int, int]]:
    """Yield start and stop of each mapping that is private, writable and backed by no file."""
    for line in MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines():
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and "".join(name) in ("", "[heap]"):
            start, stop = (int(number, 16) for number in span.split("-"))
            yield start, stop
