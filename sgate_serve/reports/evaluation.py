"""How good a model is on held-out data: dense, masked or converted, on any engine.

The data decides what is scored as in training: a causal LM's perplexity of packed text, a
classifier's or regression's scores of labelled examples. Engines are those that verify.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from converters.convert import open_masked
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
from sgate_serve.engines import check_engine
from sgate_serve.engines.logprobs import score_tokens
from sgate_serve.errors import EngineError
from sgate_serve.options import option
from sgate_serve.verify.engines import VerifiedEngine, open_engine

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EvalOptions:
    """What to score and on what."""

    checkpoint: str
    data: Path
    gates: Path | None = option(None, "gates folder: scores the masked dense model, on torch")
    gates_kind: str | None = option(
        None, "what --gates is: sgate, finegates or peft (default: detected)"
    )
    engine: str = option("auto", "auto, torch, onnx or vllm; auto is onnx where it has a graph")
    seq_len: int = option(256, "tokens per block of text, or of an example at most")
    eval_blocks: int = option(128, "blocks of text that are measured, at most")


@dataclass(frozen=True)
class Evaluation:
    """Scores, and what was scored."""

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
        """Yield the scores for a person."""
        masked = "" if self.options.gates is None else f", masked by {self.options.gates}"
        yield (
            f"{self.options.checkpoint}{masked} on {self.engine}, {self.precision}: "
            f"{self.num_samples} samples"
        )
        for name, score in self.scores.items():
            yield f"{name:<12}{score.value:.4f} ± {score.standard_error:.4f}"


def evaluate(options: EvalOptions) -> Evaluation:
    """Score a model; raise SgateError for data, gates or an engine that do not fit it."""
    check_extra_installed()
    masked = open_masked(options.checkpoint, options.gates, gates_kind=options.gates_kind)
    model = masked.base
    if model.spec.task == BASE:
        raise EngineError(
            f"{model.folder} is a {model.spec.head.model_class}, without a head to score; give a "
            "causal LM, a classifier or a regression"
        )
    if options.gates is None:
        engine = open_engine(options.engine, model, options.seq_len)
    else:
        if options.engine not in ("auto", "torch"):
            raise EngineError(
                f"--engine {options.engine}: a masked model runs on torch; convert it first"
            )
        check_engine("torch")
        from sgate_serve.verify.reference import TorchModel

        engine = TorchModel.masked_dense(masked)
    score = _language_scores if model.spec.task == CAUSAL_LM else _labelled_scores
    num_samples, scores = score(engine, model, options)
    return Evaluation(
        options, f"{engine.name} {engine.version}", engine.precision, num_samples, scores
    )


def _language_scores(
    engine: VerifiedEngine, model: Checkpoint, options: EvalOptions
) -> tuple[int, Metrics]:
    tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.spec.vocab_size)
    documents = read_documents(options.data, HELD_OUT)
    blocks = pack(documents, tokenizer, end_token(model.config), options.seq_len)
    blocks = evenly_spaced(blocks, options.eval_blocks)
    nats = [nats_of(engine.logits(block), block) for block in _progress(blocks)]
    return len(blocks), perplexity_metrics(
        np.array(nats), np.full(len(blocks), options.seq_len - 1)
    )


def _labelled_scores(
    engine: VerifiedEngine, model: Checkpoint, options: EvalOptions
) -> tuple[int, Metrics]:
    labels, encoder = Labels.of_model(model), ExampleEncoder(model, options.seq_len)
    examples = read_examples(options.data, HELD_OUT)
    truth = np.array([labels.number(example) for example in examples])
    rows = [_outputs(engine, encoder, model.spec, example) for example in _progress(examples)]
    outputs = np.stack(rows).astype(np.float64)
    if labels.names:
        return len(examples), classification_metrics(outputs, truth)
    return len(examples), regression_metrics(outputs[:, 0], truth)


def _outputs(
    engine: VerifiedEngine, encoder: ExampleEncoder, spec: ModelSpec, example: Any
) -> Floats:
    encoded = encoder.encode(example)
    types = encoded.token_types if spec.num_types > 1 else None
    logits: Floats = engine.logits(
        np.array(encoded.ids), None if types is None else np.array(types)
    )[0]
    return logits


def nats_of(logits: Floats, tokens: NDArray[np.int64]) -> float:
    """Return the summed negative log likelihood of tokens [s] but the first, from logits [s, v]."""
    targets: list[int] = tokens[1:].tolist()
    scores = score_tokens(logits[:-1], targets, [0] * len(targets))
    return -float(np.sum([score.logprob for score in scores]))


def _progress(samples: Any) -> Any:
    return tqdm(samples, desc="scoring", disable=None)
