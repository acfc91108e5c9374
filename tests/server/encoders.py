"""Served encoders of hashes, and what they must answer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import PoolingRequest
from sgate_serve.server.classifier_head import ClassifierHead
from sgate_serve.server.served_model import ServedModel, ServedTask
from sgate_serve.text.tokenization import TextCodec
from tests.server.hash_encoder import HashEncoder, hash_values
from tests.server.live import MODEL, VOCAB_SIZE
from tests.text_model import pair_tokenizer

TOKENIZER = pair_tokenizer()
CODEC = TextCodec(TOKENIZER)
HEAD = ClassifierHead(("no", "maybe", "yes"), "single_label_classification")
WIDTH = 4


def encoder_of(task: ServedTask, engine: HashEncoder | None = None, **options: Any) -> ServedModel:
    """A model of the task: a classifier with three labels, or embeddings of four numbers."""
    head = HEAD if task == "classify" else None
    values: dict[str, Any] = {"codec": CODEC, "head": head, **options}
    engine = engine or HashEncoder(VOCAB_SIZE, len(HEAD.names) if head else WIDTH)
    return ServedModel(engine, MODEL, task=task, **values)


def expected(text: str, pair: str | None = None, width: int = WIDTH) -> NDArray[np.float32]:
    """What the engine says of a text or a pair."""
    encoding = TOKENIZER.encode(text) if pair is None else TOKENIZER.encode(text, pair)
    types = tuple(encoding.type_ids) if any(encoding.type_ids) else None
    return hash_values(PoolingRequest("", tuple(encoding.ids), types), width)
