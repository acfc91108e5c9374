"""An ONNX graph that reads rows whole: an encoder, or a decoder that classifies or embeds.

Nothing outlives a call. Tokens of all rows lie packed; only attention sees padding, so the values
of a row are the same in any batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.engines.onnx.engine import GraphInfo, graph_path
from sgate_serve.engines.onnx.runner import Ints, open_session, ramps
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format import names

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One text: token ids [s], and the type of each; None is type 0 for all."""

    tokens: Ints
    types: Ints | None = None


@dataclass(frozen=True, kw_only=True)
class ReaderInfo(GraphInfo):
    """What a graph that reads says of itself besides."""

    vocab_size: int
    num_types: int
    padding_id: int | None
    logit_token: str

    @classmethod
    def read(cls, metadata: Mapping[str, str], source: Path) -> "ReaderInfo":
        """Parse metadata_props; raise EngineError for another release's graph, or one to decode."""
        info = GraphInfo.read(metadata, source)
        if info.kind == names.GENERATE:
            raise EngineError(
                f"{source} generates text; it is no graph to classify or embed with: load it as a "
                "causal language model"
            )
        padding = metadata[names.META_PADDING_ID]
        return cls(
            **vars(info),
            vocab_size=int(metadata[names.META_VOCAB_SIZE]),
            num_types=int(metadata[names.META_NUM_TYPES]),
            padding_id=int(padding) if padding else None,
            logit_token=metadata[names.META_LOGIT_TOKEN],
        )


class OnnxReader:
    """A session over such a graph. Not thread-safe."""

    def __init__(self, session: Any, info: ReaderInfo) -> None:
        self.info, self._session = info, session
        self._wanted = {value.name for value in session.get_inputs()}

    @classmethod
    def load(cls, folder: Path, threads: int) -> "OnnxReader":
        """Load `model.onnx`; raise EngineError if it is missing, another's or unreadable."""
        path = graph_path(folder)
        session = open_session(str(path), folder, threads)
        metadata = session.get_modelmeta().custom_metadata_map
        return cls(session, ReaderInfo.read(metadata, path))

    def read(self, rows: Sequence[Row]) -> list[Floats]:
        """Return what the graph says of each row: logits [labels], or states [s, hidden]."""
        counts = np.array([len(row.tokens) for row in rows])
        assert counts.min() > 0 and counts.max() <= self.info.capacity, "a row has no such length"
        feeds = {name: v for name, v in self._feeds(rows, counts).items() if name in self._wanted}
        (values,) = self._session.run(None, feeds)
        if self.info.kind == names.CLASSIFY:
            return list(values[: len(rows)])
        return np.split(values[: counts.sum()], np.cumsum(counts)[:-1])

    def _feeds(self, rows: Sequence[Row], counts: Ints) -> dict[str, Array]:
        which, within = np.repeat(np.arange(len(rows)), counts), ramps(counts)
        starts, longest = np.cumsum(counts) - counts, counts.max()
        unpack = np.zeros((len(rows), longest), np.int64)
        unpack[which, within] = np.arange(counts.sum())
        packed = {
            names.INPUT_IDS: np.concatenate([row.tokens for row in rows]),
            names.TOKEN_TYPE_IDS: np.concatenate([self._types(row) for row in rows]),
            names.POSITION_IDS: within,
            names.PACK_INDEX: which * longest + within,
            names.LOGIT_INDEX: starts + [self._logit_place(row) for row in rows],
        }
        filled = {name: self._filled_up(values) for name, values in packed.items()}
        return filled | {
            names.UNPACK_INDEX: unpack,
            names.QUERY_SEQLENS: counts.astype(np.int32),
            names.SEQLENS_K: (counts - 1).astype(np.int32),
            names.TOTAL_SEQUENCE_LENGTH: np.array(longest, np.int32),
        }

    def _filled_up(self, values: Ints) -> Ints:
        """Add zeros, tokens that attention sees in no row, up to a multiple the graph wants."""
        return np.pad(values, (0, -len(values) % self.info.row_multiple))

    def _types(self, row: Row) -> Ints:
        return np.zeros(len(row.tokens), np.int64) if row.types is None else row.types

    def _logit_place(self, row: Row) -> int:
        """Return which token of a row a classifier's logits are of.

        As in transformers, the last one is the last that is not the padding id, and of a row of
        nothing else the first.
        """
        if self.info.logit_token == names.FIRST:
            return 0
        real = np.flatnonzero(row.tokens != self.info.padding_id)
        return int(real[-1]) if len(real) else 0
