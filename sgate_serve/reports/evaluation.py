"""The quality of a model on held-out data: dense, masked or converted, on any engine.

The task decides what is measured, as in training: the perplexity of packed text for a causal LM,
scores of labelled examples for a classifier or regression.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.convert import open_masked
from converters.masked import MaskedCheckpoint
from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import (
    end_token,
    evenly_spaced,
    pack,
    read_documents,
    read_tokenizer,
)
from sgate_serve.data.examples import ExampleEncoder, Labels
from sgate_serve.data.hub import HELD_OUT
from sgate_serve.data.metrics import (
    Metrics,
    check_extra_installed,
    classification_metrics,
    perplexity_metrics,
    regression_metrics,
)
from sgate_serve.data.records import Columns, Example, read_examples
from sgate_serve.engines.model_protocols import Floats, LogitsModel
from sgate_serve.engines.table import AUTO, check_engine
from sgate_serve.engines.token_logprobs import token_logprobs
from sgate_serve.errors import EngineError
from sgate_serve.loaders.logits import TORCH, load_logits_model, rounding_of
from sgate_serve.loaders.sized_folder import open_size
from sgate_serve.options import check_at_least, option, required
from sgate_serve.progress import activity, counted

# The groups of `sgate eval --help`.
DATA, MODEL = "data", "the model and its engine"


@dataclass(frozen=True)
class EvalOptions:
    """The model to evaluate, the data and the engine."""

    checkpoint: str
    data: Path = required(
        "held-out data: text for a causal LM, labelled .jsonl or .csv for other models; or a name "
        "of the datasets library",
        group=DATA,
    )
    gates: Path | None = option(
        None, "gates folder: evaluates the masked dense model, on torch", group=MODEL
    )
    gates_kind: str | None = option(
        None, "what --gates is: sgate, finegates or peft (default: detected)", group=MODEL
    )
    engine: str = option(
        "auto",
        "auto, torch, onnx or vllm; auto is onnx if the folder holds a graph, else torch",
        group=MODEL,
    )
    precision: str | None = option(
        None, "fp32, fp16, int8, int4 or auto, of the onnx engine (default: as stored)", group=MODEL
    )
    text_column: str = option("text", "column of the text in .jsonl, .csv or a dataset", group=DATA)
    text_pair_column: str = option(
        "text_pair", "column of the second text of each pair, for labelled data", group=DATA
    )
    label_column: str = option("label", "column of the label, for labelled data", group=DATA)
    keep: float | None = option(
        None, "the size of the folder that keeps this fraction (default: the largest)", group=MODEL
    )
    seq_len: int = option(256, "tokens per block of text; longest labelled example", group=DATA)
    eval_blocks: int = option(128, "largest number of blocks of text", group=DATA)

    def __post_init__(self) -> None:
        # A text is scored from its second token on.
        check_at_least("seq_len", self.seq_len, 2, EngineError)
        check_at_least("eval_blocks", self.eval_blocks, 1, EngineError)
        if self.keep is not None and self.gates is not None:
            raise EngineError(
                "--keep with --gates: a masked model has one size; give a converted folder"
            )

    @property
    def columns(self) -> Columns:
        return Columns(self.text_column, self.text_pair_column, self.label_column)


@dataclass(frozen=True)
class Evaluation:
    """Scores, with the model and data they belong to; `unit` says what the samples are."""

    options: EvalOptions
    engine: str
    precision: str
    num_samples: int
    scores: Metrics
    unit: str = "samples"

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.options.checkpoint,
            "keep": self.options.keep,
            "gates": None if self.options.gates is None else str(self.options.gates),
            "data": str(self.options.data),
            "engine": self.engine,
            "precision": self.precision,
            "num_samples": self.num_samples,
            "seq_len": self.options.seq_len,
            "scores": {name: asdict(score) for name, score in self.scores.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the scores as lines of text."""
        masked = "" if self.options.gates is None else f", masked by {self.options.gates}"
        masked += "" if self.options.keep is None else f", size {self.options.keep:g}"
        yield (
            f"{self.options.checkpoint}{masked} on {self.engine}, {self.precision}: "
            f"n = {self.num_samples} {self.unit}"
        )
        yield f"{'':<12}{'score':>10}  {'95% interval':>20}"
        for name, score in self.scores.items():
            yield f"{name:<12}{score.value:>10.4f}  {score.interval_text:>20}"


def evaluate(options: EvalOptions) -> Evaluation:
    """Evaluate a model; raise SgateError for data, gates or an engine that do not fit it."""
    check_extra_installed()
    masked = _masked(options)
    model = masked.base if masked is not None else open_size(options.checkpoint, options.keep)
    if model.spec.task == BASE:
        raise EngineError(
            f"{model.folder} is a {model.spec.head.model_class}, without a head to score; give a "
            "causal LM, a classifier or a regression"
        )
    if options.engine != AUTO:
        check_engine(options.engine)
    # Read before the model is loaded, which may take long and build a graph.
    samples = (_Text if model.spec.task == CAUSAL_LM else _Labelled)(model, options)
    if masked is None:
        loaded = load_logits_model(options.engine, model, options.seq_len, options.precision)
        precision = rounding_of(model, loaded)
    else:
        loaded = _masked_dense(masked, options)
        precision = loaded.precision.name
    with closing(loaded):
        scores = samples.scores(loaded)
    engine = f"{loaded.name} {loaded.version}"
    return Evaluation(options, engine, precision, len(samples), scores, samples.unit)


def _masked(options: EvalOptions) -> MaskedCheckpoint | None:
    """Return the base with its gates; None without gates, where int8 folders are models too."""
    if options.gates is None and options.gates_kind is None:
        return None
    return open_masked(options.checkpoint, options.gates, gates_kind=options.gates_kind)


def _masked_dense(masked: MaskedCheckpoint, options: EvalOptions) -> LogitsModel:
    if options.engine not in (AUTO, TORCH):
        raise EngineError(
            f"--engine {options.engine}: a masked model runs on torch; convert it first"
        )
    if options.precision is not None:
        raise EngineError(
            f"--precision {options.precision}: a masked model runs in fp32; convert it first"
        )
    check_engine(TORCH)
    from sgate_serve.loaders.torch_model import TorchModel  # torch may not be installed

    return TorchModel.masked_dense(masked)


class _Text:
    """Held-out text in blocks of equal length, for the perplexity of a causal LM."""

    def __init__(self, model: Checkpoint, options: EvalOptions) -> None:
        if options.columns != Columns(text=options.text_column):
            raise EngineError(
                f"{model.folder} is a causal LM, scored on text alone; drop --label-column and "
                "--text-pair-column"
            )
        tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.spec.vocab_size)
        documents = read_documents(options.data, HELD_OUT, options.columns)
        blocks = pack(documents, tokenizer, end_token(model.config), options.seq_len)
        self._blocks = evenly_spaced(blocks, options.eval_blocks)
        self.unit = f"blocks of {options.seq_len} tokens"

    def __len__(self) -> int:
        return len(self._blocks)

    def scores(self, loaded: LogitsModel) -> Metrics:
        nats = [nats_of(loaded.logits(block), block) for block in _progress(self._blocks)]
        counts = np.full(len(self._blocks), self._blocks.shape[1] - 1)
        return perplexity_metrics(np.array(nats), counts)


class _Labelled:
    """Labelled examples, for the scores of a classifier or a regression."""

    unit = "samples"

    def __init__(self, model: Checkpoint, options: EvalOptions) -> None:
        self._labels, self._spec = Labels.of_model(model), model.spec
        self._encoder = ExampleEncoder(model, options.seq_len)
        self._examples = read_examples(options.data, HELD_OUT, options.columns)
        self._truth = np.array([self._labels.number(example) for example in self._examples])

    def __len__(self) -> int:
        return len(self._examples)

    def scores(self, loaded: LogitsModel) -> Metrics:
        rows = [self._outputs(loaded, example) for example in _progress(self._examples)]
        outputs = np.stack(rows).astype(np.float64)
        if self._labels.names:
            return classification_metrics(outputs, self._truth)
        return regression_metrics(outputs[:, 0], self._truth)

    def _outputs(self, loaded: LogitsModel, example: Example) -> Floats:
        encoded = self._encoder.encode(example)
        types = encoded.token_types if self._spec.num_types > 1 else None
        logits: Floats = loaded.logits(
            np.array(encoded.ids), None if types is None else np.array(types)
        )[0]
        return logits


def nats_of(logits: Floats, tokens: NDArray[np.int64]) -> float:
    """Return the negative log-likelihood of tokens [s] after the first, from logits [s, vocab]."""
    targets: list[int] = tokens[1:].tolist()
    logprobs = token_logprobs(logits[:-1], targets, [0] * len(targets))
    return -float(np.sum([each.logprob for each in logprobs]))


def _progress(samples: Any) -> Iterator[Any]:
    with activity("evaluating", is_brief=True):
        yield from counted(samples, "sample")
