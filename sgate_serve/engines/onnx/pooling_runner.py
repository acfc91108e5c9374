"""An ONNX graph that processes whole texts: an encoder, or a decoder that classifies or embeds.

No state outlives a call. The tokens of all rows are packed; only attention sees padding, so the
values of a row are the same in any batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.engines.model_protocols import Floats
from sgate_serve.engines.onnx.engine import GraphInfo, graph_path
from sgate_serve.engines.onnx.graph_metadata import GraphMetadata, cannot_run
from sgate_serve.engines.onnx.runner import Ints, open_session, ramps
from sgate_serve.errors import EngineError, RequestError
from sgate_serve.onnx_format import names


@dataclass(frozen=True)
class TokenRow:
    """One text: token ids [s] and their segment ids [s]; None means segment 0 everywhere."""

    tokens: Ints
    types: Ints | None = None


@dataclass(frozen=True, kw_only=True)
class PoolingGraphInfo(GraphInfo):
    """The metadata of a graph of a pooling model.

    `padding_position` is the position of padding tokens if they have one of their own, and
    `counts_padding` says that a graph of an older release lacks it although its family has one.
    """

    vocab_size: int
    num_types: int
    padding_id: int | None
    logit_token: str
    padding_position: int | None = None
    counts_padding: bool = False

    @classmethod
    def read(cls, metadata: Mapping[str, str], source: Path) -> "PoolingGraphInfo":
        """Parse metadata_props; raise EngineError as `GraphInfo` does, or for a generator."""
        info = GraphInfo.read(metadata, source)
        if info.kind == names.GENERATE:
            raise EngineError(
                f"{source} generates text; it is not a graph to classify or embed with: load it as "
                "a causal language model"
            )
        found, key = GraphMetadata(metadata, source), names.META_PADDING_POSITION
        position = found.whole(key) if metadata.get(key) else None
        family = FAMILIES.get(found.text(names.META_FAMILY))
        return cls(
            **vars(info),
            vocab_size=found.whole(names.META_VOCAB_SIZE, least=1),
            num_types=found.whole(names.META_NUM_TYPES),
            padding_id=found.optional_integer(names.META_PADDING_ID),
            logit_token=found.text(names.META_LOGIT_TOKEN, (names.FIRST, names.LAST, names.EVERY)),
            padding_position=position,
            counts_padding=position is None and family is not None and family.has_padded_positions,
        )

    def check_padding(self, tokens: Sequence[int] | Ints) -> None:
        """Raise RequestError for a padding token to which the graph would give a wrong position."""
        if self.counts_padding and self.padding_id in tokens:
            raise RequestError(
                f"the text holds the padding token, id {self.padding_id}, whose position this "
                "model's graph does not have: an older release wrote it; convert the model again, "
                "or leave the token out",
                param="prompt",
            )

    def positions(self, tokens: Ints) -> Ints:
        """Return the position [s] of each token of a text.

        If padding tokens have a position of their own, the others do not count them.
        """
        if self.padding_position is None:
            return np.arange(len(tokens))
        is_real = tokens != self.padding_id
        return np.where(is_real, np.cumsum(is_real) - 1, self.padding_position)


class OnnxPoolingRunner:
    """A session over the graph of a pooling model. Not thread-safe."""

    def __init__(self, folder: Path, session: Any, info: PoolingGraphInfo) -> None:
        self.folder, self.info, self.session = folder, info, session
        self.path = graph_path(folder)
        self._wanted = {value.name for value in session.get_inputs()}

    @classmethod
    def load(cls, folder: Path, threads: int) -> "OnnxPoolingRunner":
        """Load `model.onnx`; raise EngineError if it is missing, does not fit or does not run."""
        path = graph_path(folder)
        session = open_session(str(path), folder, threads)
        metadata = session.get_modelmeta().custom_metadata_map
        runner = cls(folder, session, PoolingGraphInfo.read(metadata, path))
        runner.try_out()
        return runner

    def try_out(self) -> None:
        """Run the ids at the ends of tables; raise EngineError if the graph does not run."""
        info = self.info
        tokens = [info.vocab_size - 1, 0]
        if info.padding_id is not None and 0 <= info.padding_id < info.vocab_size:
            tokens.append(info.padding_id)
        row = np.array(tokens[: info.capacity], np.int64)
        self.forward([TokenRow(row, np.full(len(row), max(info.num_types - 1, 0), np.int64))])

    def forward(self, rows: Sequence[TokenRow]) -> list[Floats]:
        """Return the output of the graph for each row: logits [labels], or states [s, hidden].

        Raises EngineError if the graph does not run.
        """
        counts = np.array([len(row.tokens) for row in rows])
        assert counts.min() > 0 and counts.max() <= self.info.capacity, "a row has no such length"
        feeds = {name: v for name, v in self._feeds(rows, counts).items() if name in self._wanted}
        try:
            (values,) = self.session.run(None, feeds)
        except Exception as error:  # ONNX Runtime's exception classes have no common base
            raise cannot_run(self.path, error) from error
        if self.info.kind == names.CLASSIFY:
            return list(values[: len(rows)])
        return np.split(values[: counts.sum()], np.cumsum(counts)[:-1])

    def _feeds(self, rows: Sequence[TokenRow], counts: Ints) -> dict[str, Array]:
        which, within = np.repeat(np.arange(len(rows)), counts), ramps(counts)
        starts, longest = np.cumsum(counts) - counts, counts.max()
        unpack = np.zeros((len(rows), longest), np.int64)
        unpack[which, within] = np.arange(counts.sum())
        packed = {
            names.INPUT_IDS: np.concatenate([row.tokens for row in rows]),
            names.TOKEN_TYPE_IDS: np.concatenate([self._types(row) for row in rows]),
            names.POSITION_IDS: np.concatenate([self.info.positions(row.tokens) for row in rows]),
            names.PACK_INDEX: which * longest + within,
            names.LOGIT_INDEX: starts + [self._logit_position(row) for row in rows],
        }
        padded = {name: self._padded(values) for name, values in packed.items()}
        return padded | {
            names.UNPACK_INDEX: unpack,
            names.QUERY_SEQLENS: counts.astype(np.int32),
            names.SEQLENS_K: (counts - 1).astype(np.int32),
            names.TOTAL_SEQUENCE_LENGTH: np.array(longest, np.int32),
        }

    def _padded(self, values: Ints) -> Ints:
        """Pad with zeros, outside every row that attention sees, to the graph's row multiple."""
        return np.pad(values, (0, -len(values) % self.info.row_multiple))

    def _types(self, row: TokenRow) -> Ints:
        return np.zeros(len(row.tokens), np.int64) if row.types is None else row.types

    def _logit_position(self, row: TokenRow) -> int:
        """Return the position in a row whose state is classified.

        "Last" means, as in transformers, the last token that is not the padding id, or the first
        token of a row of padding alone.
        """
        if self.info.logit_token == names.FIRST:
            return 0
        real = np.flatnonzero(row.tokens != self.info.padding_id)
        return int(real[-1]) if len(real) else 0
