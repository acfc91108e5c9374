"""The quality of a model on held-out data: dense, masked or converted, on any engine.

The task decides what is measured, as in training: the perplexity of packed text for a causal LM,
scores of labelled examples for a classifier or regression.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.convert import open_masked
from converters.masked import MaskedCheckpoint
from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.architecture.spec import ModelSpec
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
from sgate_serve.data.records import read_examples
from sgate_serve.engines.loaded import Floats, LogitsModel
from sgate_serve.engines.table import AUTO, check_engine
from sgate_serve.engines.token_logprobs import token_logprobs
from sgate_serve.errors import EngineError
from sgate_serve.loaders.logits import TORCH, load_logits_model, rounding_of
from sgate_serve.options import option
from sgate_serve.progress import activity, counted


@dataclass(frozen=True)
class EvalOptions:
    """The model to evaluate, the data and the engine."""

    checkpoint: str
    data: Path
    gates: Path | None = option(None, "gates folder: evaluates the masked dense model, on torch")
    gates_kind: str | None = option(
        None, "what --gates is: sgate, finegates or peft (default: detected)"
    )
    engine: str = option(
        "auto", "auto, torch, onnx or vllm; auto is onnx if the folder holds a graph, else torch"
    )
    seq_len: int = option(256, "tokens per block of text; longest labelled example")
    eval_blocks: int = option(128, "largest number of blocks of text")


@dataclass(frozen=True)
class Evaluation:
    """Scores, with the model and data they belong to."""

    options: EvalOptions
    engine: str
    precision: str
    num_samples: int
    scores: Metrics

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.options.checkpoint,
            "gates": None if self.options.gates is None else str(self.options.gates),
            "data": str(self.options.data),
            "engine": self.engine,
            "precision": self.precision,
            "num_samples": self.num_samples,
            "seq_len": self.options.seq_len,
            "scores": {name: vars(score) for name, score in self.scores.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the scores as lines of text."""
        masked = "" if self.options.gates is None else f", masked by {self.options.gates}"
        yield (
            f"{self.options.checkpoint}{masked} on {self.engine}, {self.precision}: "
            f"{self.num_samples} samples"
        )
        for name, score in self.scores.items():
            yield f"{name:<12}{score.value:.4f} ± {score.standard_error:.4f}"


def evaluate(options: EvalOptions) -> Evaluation:
    """Evaluate a model; raise SgateError for data, gates or an engine that do not fit it."""
    check_extra_installed()
    masked = open_masked(options.checkpoint, options.gates, gates_kind=options.gates_kind)
    model = masked.base
    if model.spec.task == BASE:
        raise EngineError(
            f"{model.folder} is a {model.spec.head.model_class}, without a head to score; give a "
            "causal LM, a classifier or a regression"
        )
    if options.gates is None:
        loaded = load_logits_model(options.engine, model, options.seq_len)
        precision = rounding_of(model, loaded)
    else:
        loaded = _masked_dense(masked, options.engine)
        precision = loaded.precision.name
    score = _language_scores if model.spec.task == CAUSAL_LM else _labelled_scores
    with closing(loaded):
        num_samples, scores = score(loaded, model, options)
    return Evaluation(options, f"{loaded.name} {loaded.version}", precision, num_samples, scores)


def _masked_dense(masked: MaskedCheckpoint, engine: str) -> LogitsModel:
    if engine not in (AUTO, TORCH):
        raise EngineError(f"--engine {engine}: a masked model runs on torch; convert it first")
    check_engine(TORCH)
    from sgate_serve.loaders.torch_model import TorchModel  # torch may not be installed

    return TorchModel.masked_dense(masked)


def _language_scores(
    loaded: LogitsModel, model: Checkpoint, options: EvalOptions
) -> tuple[int, Metrics]:
    tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.spec.vocab_size)
    documents = read_documents(options.data, HELD_OUT)
    blocks = pack(documents, tokenizer, end_token(model.config), options.seq_len)
    blocks = evenly_spaced(blocks, options.eval_blocks)
    nats = [nats_of(loaded.logits(block), block) for block in _progress(blocks)]
    return len(blocks), perplexity_metrics(
        np.array(nats), np.full(len(blocks), options.seq_len - 1)
    )


def _labelled_scores(
    loaded: LogitsModel, model: Checkpoint, options: EvalOptions
) -> tuple[int, Metrics]:
    labels, encoder = Labels.of_model(model), ExampleEncoder(model, options.seq_len)
    examples = read_examples(options.data, HELD_OUT)
    truth = np.array([labels.number(example) for example in examples])
    rows = [_outputs(loaded, encoder, model.spec, example) for example in _progress(examples)]
    outputs = np.stack(rows).astype(np.float64)
    if labels.names:
        return len(examples), classification_metrics(outputs, truth)
    return len(examples), regression_metrics(outputs[:, 0], truth)


def _outputs(loaded: LogitsModel, encoder: ExampleEncoder, spec: ModelSpec, example: Any) -> Floats:
    encoded = encoder.encode(example)
    types = encoded.token_types if spec.num_types > 1 else None
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
