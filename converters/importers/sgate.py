"""Our own gates folder, as `sgate train` writes it; `sgate_serve.gates` owns the format."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from converters.importers.source import GatesSource
from sgate_serve.architecture.wholes import wholes_of
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import GatesError
from sgate_serve.gates import GATES_FILE, Gates

logger = logging.getLogger(__name__)

Entry = TypeVar("Entry")

TITLE = "sgate gates folder"
FILES = (GATES_FILE,)
MARKS = (".mlp_units", ".experts", ".heads", ".kv_groups", ".rows", ".columns")


def read(source: GatesSource, base: Checkpoint) -> Gates:
    """Read coupled or row-col gates; the caller checks that they belong to `base`."""
    gates = Gates.read(source.location)
    if gates.base_digest is None:
        logger.warning(
            "%s: written before gates recorded a digest of their base: only the first and last "
            "4 KiB of each tensor are compared with %s",
            gates.source,
            base.folder,
        )
    return replace(
        gates,
        values=_named_alone(gates.values, base, gates.source),
        deltas=_named_alone(gates.deltas, base, gates.source),
        order=_named_alone(gates.order, base, gates.source),
    )


def _named_alone(entries: Mapping[str, Entry], base: Checkpoint, source: str) -> dict[str, Entry]:
    """Return entries whose keys may name modules of a whole by the names of its text part alone.

    Raises GatesError for one that is there under both names.
    """
    found = dict[str, Entry]()
    for key, entry in entries.items():
        own = key
        for whole in wholes_of(base.spec.family.name):
            own = whole.text_name(own)
        if own in found:
            raise GatesError(f"{source}: two keys mean {own}, one of them is {key}; keep one")
        found[own] = entry
    return found
