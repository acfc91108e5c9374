"""Our own gates folder, as `sgate train` writes it; `sgate_serve.gates` owns the format."""

from converters.importers.source import GatesSource
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates import GATES_FILE, Gates

TITLE = "sgate gates folder"
FILES = (GATES_FILE,)
MARKS = (".mlp_units", ".heads", ".kv_groups", ".rows", ".columns")


def read(source: GatesSource, base: Checkpoint) -> Gates:
    """Read coupled or row-col gates; the caller checks that they belong to `base`."""
    return Gates.read(source.location)
