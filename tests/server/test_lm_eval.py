"""lm-eval's `local-completions`, which scores continuations by echoed log-probabilities."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.server.onnx_server import serving_folder, tiny_folder
from tests.small_llama import dense_llama, reference_logits

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install sgate-serve[clients]")

DOCS = [
    {"text": "the cat sat on the", "choices": ["mat", "log and the dog", "🚀"], "gold": 0},
    {"text": "a gate that is closed lets", "choices": ["nothing through", "naïve"], "gold": 1},
    {"text": "猫がマット", "choices": ["の上に座った", "the cat"], "gold": 0},
]


def task(folder: Path) -> dict[str, Any]:
    """A multiple-choice task over DOCS, in files of its own."""
    file = folder / "docs.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), encoding="utf-8")
    return {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_of_continuations_are_the_references(tmp_path: Path, batch_size: int) -> None:
    import lm_eval

    (tmp_path / "model").mkdir()
    folder = tiny_folder(tmp_path / "model")
    with serving_folder(folder, slots=2) as client:
        result = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": folder.name,
                "base_url": f"{client.base_url}/v1/completions",
                "tokenizer": str(folder),
                "tokenizer_backend": "huggingface",
                "batch_size": batch_size,
                "max_retries": 1,
            },
            tasks=[task(tmp_path)],
            bootstrap_iters=0,
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    samples = sorted(result["samples"]["tiny"], key=lambda sample: sample["doc_id"])
    for doc, sample in zip(DOCS, samples, strict=True):
        found = [float(score) for [(score, _)] in sample["resps"]]
        assert found == pytest.approx(reference_scores(tokenizer, doc), abs=1e-3)


def reference_scores(tokenizer: Tokenizer, doc: dict[str, Any]) -> Sequence[float]:
    """The log-likelihood of each choice after the text, from torch."""
    model = dense_llama(vocab_size=tokenizer.get_vocab_size())
    scores = []
    for choice in doc["choices"]:
        context = tokenizer.encode(doc["text"], add_special_tokens=False).ids
        whole = tokenizer.encode(f"{doc['text']} {choice}", add_special_tokens=False).ids
        logits = torch.tensor(reference_logits(model, np.array(whole))).double()
        rows = logits.log_softmax(-1)
        scores.append(sum(float(rows[i - 1, whole[i]]) for i in range(len(context), len(whole))))
    return scores
