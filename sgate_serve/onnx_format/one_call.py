"""A graph that is run once on a whole text, to see values inside it: not for serving."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sgate_serve.errors import EngineError
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.precision import FP16

TYPES: Mapping[str, DTypeLike] = MappingProxyType(
    {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
)
# States of recurrent layers are so in every precision.
STATE_DTYPE = np.dtype(np.float32)


class PastInput(NamedTuple):
    """One past input of a graph: its name, KV heads, head width and element type."""

    name: str
    heads: int
    width: int
    dtype: Any

    @property
    def bytes_per_token(self) -> int:
        return self.heads * self.width * int(self.dtype.itemsize)


def past_inputs(session: Any) -> list[PastInput]:
    """Return the past inputs of a session."""
    return [
        PastInput(value.name, value.shape[1], value.shape[3], np.dtype(TYPES[value.type]))
        for value in session.get_inputs()
        if value.name.startswith(names.PAST_PREFIX)
    ]


class StateInput(NamedTuple):
    """One state of a recurrent layer among the inputs of a graph, and the shape of a row of it."""

    name: str
    shape: tuple[int, ...]

    @property
    def bytes_per_row(self) -> int:
        return prod(self.shape) * STATE_DTYPE.itemsize


def state_inputs(session: Any) -> list[StateInput]:
    """Return the states of recurrent layers among the inputs of a session."""
    return [
        StateInput(value.name, tuple(value.shape[1:]))
        for value in session.get_inputs()
        if value.name.startswith(names.PAST_STATE_PREFIX)
    ]


def graph_with_outputs(model: Any, wanted: Sequence[str], path: Path) -> bytes:
    """Return a loaded graph (`onnx_ir.Model`) whose outputs include the values named `wanted`.

    They have the type of the graph's floats. Raises EngineError naming `path` for a value that is
    not there.
    """
    import onnx_ir as ir

    is_half = model.metadata_props.get(names.META_PRECISION) == FP16
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in wanted:
        if name not in values:
            raise EngineError(f"{path}: value {name} is missing; convert the model again")
        values[name].type = ir.TensorType(ir.DataType.FLOAT16 if is_half else ir.DataType.FLOAT)
        model.graph.outputs.append(values[name])
    graph: bytes = ir.to_proto(model).SerializeToString()
    return graph


def prefill_feeds(
    session: Any,
    tokens: NDArray[np.int64],
    own_feeds: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the inputs of one call with an empty cache as long as `tokens` [s], and empty states.

    `own_feeds` replace inputs that do not follow from the number of tokens.
    """
    length = len(tokens)
    feeds: dict[str, Any] = {
        names.INPUT_IDS: np.asarray(tokens, np.int64),
        names.UNPACK_INDEX: np.arange(length)[None],
        names.PACK_INDEX: np.arange(length),
        names.POSITION_IDS: np.arange(length),
        names.TOKEN_TYPE_IDS: np.zeros(length, np.int64),
        names.SEQLENS_K: np.array([length - 1], np.int32),
        names.TOTAL_SEQUENCE_LENGTH: np.array(length, np.int32),
        names.QUERY_SEQLENS: np.array([length], np.int32),
        names.LOGIT_INDEX: np.array([length - 1], np.int64),
        **own_feeds,
    }
    for past in past_inputs(session):
        feeds[past.name] = np.zeros((1, past.heads, length, past.width), past.dtype)
    for state in state_inputs(session):
        feeds[state.name] = np.zeros((1, *state.shape), STATE_DTYPE)
    wanted = {value.name for value in session.get_inputs()}
    return {name: array for name, array in feeds.items() if name in wanted}
