"""The fingerprint of gates: which mask, and which trained weights, a plan was made from."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.gates.folder import Gates


def gates_fingerprint(gates: Gates) -> str:
    """Return a sha256 over all gate values and deltas: each one's name, dtype, shape and bytes.

    It does not depend on the files that hold them. Every byte counts, so deltas are read whole,
    one tensor at a time.
    """
    digest = hashlib.sha256()
    for name, array in _arrays(gates):
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _arrays(gates: Gates) -> Iterator[tuple[str, Array]]:
    yield from ((f"gates {name}", gates.values[name]) for name in sorted(gates.values))
    yield from ((f"deltas {name}", gates.deltas[name].read()) for name in sorted(gates.deltas))
