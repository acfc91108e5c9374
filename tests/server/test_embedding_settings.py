"""Embeddings over HTTP with sentence-transformers' settings, which change the text that is read."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.commands.serve import reader_of
from tests.server.live import serving, wait_until
from tests.text.small_tokenizers import bert
from tests.text.test_pooling import write_modules

TEXTS = ["HELLO World", " the cat  ", "Naïve façade " * 9]
PROMPT = "query: "
LONGEST = 16


def write_model(folder: Path, settings: dict[str, Any], prompts: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tokenizer = bert()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=30,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    cased = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(cased))
    modules = ("Transformer", "Pooling", "Normalize")
    write_modules(folder, modules, {"word_embedding_dimension": 48, "pooling_mode": "mean"})
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def expected(folder: Path, text: str, lower_case: bool) -> Any:
    """What sentence-transformers computes, step by step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = tokenizer.backend_tokenizer
    if lower_case:
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
    tokens = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    return torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()


@pytest.mark.parametrize(
    ("settings", "prompts", "prompt"),
    [
        ({"max_seq_length": LONGEST, "do_lower_case": True}, {}, ""),
        (
            {"max_seq_length": LONGEST},
            {"prompts": {"query": PROMPT}, "default_prompt_name": "query"},
            PROMPT,
        ),
    ],
    ids=["lower case", "prompt"],
)
def test_texts_are_read_as_by_sentence_transformers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    prompts: dict[str, Any],
    prompt: str,
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    write_model(folder, settings, prompts)
    with serving(reader_of("onnx", Checkpoint.open(folder), ["--threads", "1"])) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        body = {"input": TEXTS, "truncate_prompt_tokens": -1}
        data = client.post("/v1/embeddings", json=body).raise_for_status().json()["data"]
        ids = client.post("/tokenize", json={"prompt": "HELLO"}).raise_for_status().json()["tokens"]
    lower_case = "do_lower_case" in settings
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ids == tokenizer("hello" if lower_case else "HELLO")["input_ids"]
    found = [np.array(entry["embedding"]) for entry in data]
    for text, vector in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(vector, expected(folder, prompt + text, lower_case), atol=1e-5)
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(found, theirs, atol=1e-5)
