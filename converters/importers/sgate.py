"""Our own gates folder, as `sgate train` writes it; `sgate_serve.gates` owns the format."""

import logging

from converters.importers.source import GatesSource
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates import GATES_FILE, Gates

logger = logging.getLogger(__name__)

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
    return gates
