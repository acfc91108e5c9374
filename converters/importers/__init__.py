"""Read the argument of `--gates`: our gates folder, or the masks of other tools.

Each kind is one row of `KINDS` and is read into the same `Gates` value; no other module depends on
where gates came from. Only safetensors files are read.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.importers import finegates, peft, sgate
from converters.importers.source import GatesSource
from sgate_serve.checkpoint.other_layouts import (
    ADAPTER_CONFIG,
    adapter_kind,
    merge_remedy,
)
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.errors import GatesError, did_you_mean
from sgate_serve.gates import Gates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GatesKind:
    """One layout: the files that may hold it, and the tensor names that identify it.

    `files` are tried in order, `marks` are endings of tensor names.
    """

    title: str
    files: tuple[str, ...]
    marks: tuple[str, ...]
    read: Callable[[GatesSource, Checkpoint], Gates]

    def is_in(self, source: GatesSource) -> bool:
        return any(name.endswith(self.marks) for name in source.tensors)


KINDS: Mapping[str, GatesKind] = {
    "sgate": GatesKind(sgate.TITLE, sgate.FILES, sgate.MARKS, sgate.read),
    "finegates": GatesKind(finegates.TITLE, finegates.FILES, finegates.MARKS, finegates.read),
    "peft": GatesKind(peft.TITLE, peft.FILES, peft.MARKS, peft.read),
}


def read_gates(
    location: Path, base: Checkpoint, kind: str | None = None, *, whole_base: bool = True
) -> Gates:
    """Read the gates of `base` at `location`, a folder or its safetensors file; log their kind.

    The kind is detected from the tensor names unless `kind` is given. Raises GatesError for a kind
    that is unknown or not found, and for gates that are malformed or belong to another base; with
    `whole_base` every byte of it is compared.
    """
    found = detect(location) if kind is None else _forced(kind)
    source = GatesSource.open(location, found.files)
    if not found.is_in(source):
        raise GatesError(
            f"{source.location}: no tensor ends in {' or '.join(found.marks)}, as in a "
            f"{found.title}; omit --gates-kind to have the kind detected"
        )
    gates = found.read(source, base)
    gates.check(base, whole_base=whole_base)
    logger.info("gates: %s, %d linears", found.title, len(gates.masks(base.spec)))
    return gates


def detect(location: Path) -> GatesKind:
    """Return the only kind whose tensor names are found; raise GatesError for none or several."""
    sources = {name: GatesSource.find(location, kind.files) for name, kind in KINDS.items()}
    held = [name for name, source in sources.items() if source and KINDS[name].is_in(source)]
    if len(held) > 1:
        raise GatesError(
            f"{location} holds gates of several kinds; choose with --gates-kind {'|'.join(held)}"
        )
    if not held:
        raise GatesError(f"{location} holds no gates{_what_instead(location)}")
    return KINDS[held[0]]


def _forced(kind: str) -> GatesKind:
    if kind not in KINDS:
        raise GatesError(
            f"--gates-kind {kind}: this release reads {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        )
    return KINDS[kind]


def _what_instead(location: Path) -> str:
    """Return what a location without gates is and what to give, as the end of a sentence."""
    folder = location if location.is_dir() else location.parent
    if (folder / ADAPTER_CONFIG).is_file():
        return f": it is {adapter_kind(folder)}; {merge_remedy(folder)}"
    inside = sorted(path.parent for path in folder.glob(f"*/{sgate.FILES[0]}"))
    if inside:
        return f"; did you mean {inside[0]}?"
    if (folder / CONFIG_FILE).is_file():
        return ": it is a model folder; give the folder of gates, as `sgate train --out` writes it"
    return f"; this release reads {_layouts()}"


def _layouts() -> str:
    layouts = (
        f"{kind.title} ({kind.files[0]}, names ending in {kind.marks[0]})"
        for kind in KINDS.values()
    )
    return ", ".join(layouts)
