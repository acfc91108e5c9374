"""Checkpoints of the FineGates authors' code: `save_pretrained` of a model with gated linears.

For each gated linear X they hold `X.gates_rows._gates_logits` [1, out],
`X.gates_columns._gates_logits` [1, in] and `X.bias`, even if the base has none, but no weight.
Paper: arXiv 2412.12951.
"""

from converters.importers.logits import ForeignGates, to_gates
from converters.importers.source import GatesSource
from sgate_serve.checkpoint.names import mask_names
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE
from sgate_serve.gates import Gates

TITLE = "FineGates checkpoint"
FILES = (SINGLE_FILE, INDEX_FILE)
# Their suffixes of gate names, and ours.
SIDES = {".gates_rows._gates_logits": ".rows", ".gates_columns._gates_logits": ".columns"}
MARKS = tuple(SIDES)
# Training buffers, which inference does not use.
IGNORED = (".noise", ".target_keep")


def read(source: GatesSource, base: Checkpoint) -> Gates:
    """Return their gates; every other tensor in the files replaces the base's tensor of its name.

    A gated head has its own bias and weights, even if the base ties it. Raises GatesError for gates
    that do not fit `base`.
    """
    found = ForeignGates(TITLE, source.location)
    for name, info in mask_names(source.tensors, base.config).items():
        mark = next(filter(name.endswith, MARKS), None)
        if mark is not None:
            found.logits[name.removesuffix(mark) + SIDES[mark]] = info
        elif not name.endswith(IGNORED):
            found.add_delta(name, info)
    return to_gates(found, base)
