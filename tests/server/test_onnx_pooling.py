"""Classifiers and embedding models over HTTP on the onnx engine, as `sgate serve` loads them."""

from pathlib import Path

import numpy as np
import pytest

from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.commands.serve import reader_of
from sgate_serve.loaders.torch_model import TorchModel
from tests.families.zoo import VARIANTS, build
from tests.server.live import serving, wait_until

# The mean of all tokens of a text is its embedding, and what its classifier reads.
MODERNBERTS = ("modernbert-base", "modernbert-biased-mean-classifier")
TEXTS = [[5, 9, 3], [7, 2, 11, 40, 8, 1], [4]]


@pytest.mark.parametrize("name", ["bert-pooled", "bert-classifier", *MODERNBERTS])
def test_answers_are_the_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (variant,) = (variant for variant in VARIANTS if str(variant) == name)
    which = int(variant.task == CLASSIFICATION)
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    build(variant, seed=0).save_pretrained(tmp_path / "model")
    model = Checkpoint.open(tmp_path / "model")
    oracle = TorchModel.converted(model.folder)
    with serving(reader_of("onnx", model, ["--threads", "1"])) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        path = ("/v1/embeddings", "/classify")[which]
        data = client.post(path, json={"input": TEXTS}).raise_for_status().json()["data"]
        assert client.post("/v1/completions", json={"prompt": [1]}).status_code == 400
    for tokens, entry in zip(TEXTS, data, strict=True):
        outputs = oracle.logits(np.array(tokens))
        if which:
            weights = np.exp(outputs[0] - outputs[0].max())
            np.testing.assert_allclose(entry["probs"], weights / weights.sum(), atol=1e-5)
        else:
            mean = outputs[: len(tokens)].mean(axis=0)
            np.testing.assert_allclose(entry["embedding"], mean, atol=1e-4)
