"""What conversion copies beside the weights, and the tokenizer's class that it states."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.architecture.family import BASE, CAUSAL_LM, CLASSIFICATION
from sgate_serve.checkpoint.companions import COMPANION_FILES, copy_companions
from sgate_serve.checkpoint.writer import new_folder

TEMPLATE = "additional_chat_templates/rag.jinja"
MODULES = (
    "modules.json",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def sgate(model_type: str) -> dict[str, Any]:
    return {"model_type": "sgate", "sgate": {"version": 2, "base_model_type": model_type}}


def copied(base: Path, out: Path, config: dict[str, Any], task: str = CAUSAL_LM) -> Path:
    with new_folder(out) as writer:
        writer.write_json("config.json", config)
        copy_companions(base, writer, task, config)
    return out


@pytest.mark.parametrize("task", [BASE, CLASSIFICATION])
def test_every_file_that_is_read_is_copied_unchanged(tmp_path: Path, task: str) -> None:
    names = [*COMPANION_FILES, TEMPLATE, *MODULES]
    for name in names:
        path = tmp_path / "base" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": name}), encoding="utf-8")
    entries = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (tmp_path / "base" / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "base" / "notes.txt").write_text("not for the server")
    out = copied(tmp_path / "base", tmp_path / "out", {"model_type": "bert"}, task)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    expected = names if task == BASE else [*COMPANION_FILES, TEMPLATE]
    assert found == {"config.json", *expected}
    for name in expected:
        assert (out / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


@pytest.mark.parametrize(
    ("model_type", "stated", "written"),
    [
        ("bert", None, "BertTokenizer"),
        ("distilbert", "DistilBertTokenizer", "DistilBertTokenizer"),
        ("mistral", "LlamaTokenizer", "PreTrainedTokenizerFast"),
        ("phi3", "LlamaTokenizerFast", "PreTrainedTokenizerFast"),
        ("qwen2", "LlamaTokenizerFast", "Qwen2Tokenizer"),
        ("qwen2", "Qwen2TokenizerFast", "Qwen2TokenizerFast"),
        ("llama", "LlamaTokenizer", "LlamaTokenizer"),
        ("llama", None, None),
        ("bert", "BertJapaneseTokenizer", "BertJapaneseTokenizer"),
    ],
)
def test_class_is_stated_where_autotokenizer_would_choose_another(
    tmp_path: Path, model_type: str, stated: str | None, written: str | None
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text("{}")
    settings = {"legacy": True} | ({} if stated is None else {"tokenizer_class": stated})
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    for config, expected in (({"model_type": model_type}, stated), (sgate(model_type), written)):
        out = copied(base, tmp_path / str(config["model_type"]), config)
        found = json.loads((out / "tokenizer_config.json").read_text())
        assert found == settings | ({} if expected is None else {"tokenizer_class": expected})


def test_no_tokenizer_gets_no_settings(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    out = copied(tmp_path / "base", tmp_path / "out", sgate("bert"))
    assert [path.name for path in out.iterdir()] == ["config.json"]
