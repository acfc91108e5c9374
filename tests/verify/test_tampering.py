"""What differs from a conversion is found, wherever it is: the table of tamperings."""

import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from converters.convert import ConvertOptions, convert
from sgate_serve.cli import main
from sgate_serve.verify.certificate import (
    CERTIFICATE_FILE,
    Verification,
    certificate_line,
    read_certificate,
)
from sgate_serve.verify.stored_parts import GraphComparison
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.text_model import write_tokenizer
from tests.verify.tampering import (
    Change,
    both,
    companion,
    config,
    further_tensor,
    graph_attribute,
    graph_metadata,
    graph_weight,
    no_plan,
    plan_of_another_base,
    tensor,
    without,
    without_tensor,
)

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 48,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "num_labels": 3,
    "pad_token_id": 0,
}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
MODELS: Mapping[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("llama", AutoModelForCausalLM, DECODER | {"tie_word_embeddings": False}),
    "mistral": ("mistral", AutoModelForCausalLM, DECODER | {"sliding_window": 128}),
    "gemma2": ("gemma2", AutoModelForCausalLM, DECODER | {"sliding_window": 32}),
    "llama-cls": ("llama", AutoModelForSequenceClassification, DECODER),
    "bert": ("bert", AutoModelForSequenceClassification, SIZES),
}


def rope_theta(old: Mapping[str, Any]) -> dict[str, Any]:
    return {**old["rope_parameters"], "rope_theta": 500.0}


def swapped(old: Mapping[str, Any]) -> list[str]:
    return list(reversed(old["layer_types"]))


TIED = config(tie_word_embeddings=True)
EMBEDDING = tensor("model.embed_tokens.weight", 399, 5.0)
# Model, engine, change, and what the difference says.
TAMPERINGS: Mapping[str, tuple[str, str, Change, str]] = {
    "rope_theta": ("llama", "auto", config(rope_parameters=rope_theta), "rope_theta is 500"),
    "rms_norm_eps": ("llama", "auto", config(rms_norm_eps=1e-2), "rms_norm_eps is 0.01, and"),
    "hidden_act": ("llama", "auto", config(hidden_act="gelu"), "hidden_act is 'gelu', and"),
    "layer_types": ("gemma2", "auto", config(layer_types=swapped), "layer_types is ["),
    "query scale": ("gemma2", "auto", config(query_pre_attn_scalar=64), "query_pre_attn_scalar"),
    "final cap": ("gemma2", "auto", config(final_logit_softcapping=5.0), "final_logit_softcap"),
    "tied flag": ("llama", "auto", TIED, "tie_word_embeddings is True"),
    "positions": ("llama", "torch", config(max_position_embeddings=64), "max_position_embeddi"),
    "window": ("mistral", "torch", config(sliding_window=64), "sliding_window is 64, and"),
    "no window": ("mistral", "torch", config(sliding_window=None), "sliding_window is None, and"),
    "cap": ("gemma2", "torch", config(attn_logit_softcapping=30.0), "attn_logit_softcapping is"),
    "padding id": ("llama-cls", "torch", config(pad_token_id=5), "pad_token_id is 5, and"),
    "labels": ("bert", "torch", config(id2label={"0": "c", "1": "b", "2": "a"}), "id2label.0 is"),
    "problem": (
        *("bert", "torch", config(problem_type="multi_label_classification")),
        "config.json has problem_type, which the conversion of this base does not write",
    ),
    "graph: embedding": ("llama", "onnx", graph_weight("embed_tokens", 399), "embed_tokens.weight"),
    "graph: cosines": ("llama", "onnx", graph_weight(".cos", slice(60, None)), "rope.0.cos is not"),
    "graph: positions": (
        *("bert", "onnx", graph_weight("position_embeddings", slice(200, None))),
        "position_embeddings.weight is not that of the folder's tensors; convert the model again",
    ),
    "graph: segment 1": (
        "bert",
        "onnx",
        graph_weight("token_type", 1),
        "type_embeddings.weight is not",
    ),
    "no plan": ("llama", "torch", both(EMBEDDING, no_plan), "sgate_plan.json is missing"),
    "plan of another": ("llama", "torch", both(EMBEDDING, plan_of_another_base), "for base 00000"),
    # More of the kind.
    "torch, graph": ("llama", "torch", graph_weight("embed_tokens", 399), "embed_tokens.weight is"),
    "graph: small epsilon": (
        *("llama", "torch", graph_attribute("SkipSimplifiedLayerNormalization", "epsilon", 1e-7)),
        "node SkipSimplifiedLayerNormalization_",
    ),
    "end of text": ("llama", "torch", config(eos_token_id=9), "eos_token_id is 9, and"),
    "missing key": ("gemma2", "torch", without("final_logit_softcapping"), "lacks final_logit_so"),
    "generation": (
        *("llama", "torch", companion("generation_config.json", '{"eos_token_id": 9}')),
        "generation_config.json is not the one that the conversion of this base writes",
    ),
    "tokenizer": ("llama", "torch", companion("tokenizer.json", "{}"), "tokenizer.json is not"),
    "no tokenizer": ("llama", "torch", lambda f: (f / "tokenizer.json").unlink(), "is missing"),
    "template": ("llama", "torch", companion("chat_template.jinja", "x"), "jinja is there, and"),
    "pooling": ("bert", "torch", companion("modules.json", "[]"), "modules.json is there, and"),
    "no head": (
        *("llama", "torch", both(without_tensor("lm_head.weight"), TIED)),
        "outside the layers: tensor lm_head.weight",
    ),
    "own head": (
        *("gemma2", "torch", further_tensor("lm_head.weight", "model.embed_tokens.weight")),
        "outside the layers: tensor lm_head.weight",
    ),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A folder for each model, with its base and its conversion with a graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {name: write_model(name, tmp_path_factory.mktemp(name)) for name in MODELS}


def write_model(name: str, root: Path) -> Path:
    family, auto, fields = MODELS[name]
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(family, **fields)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("down_proj.weight", "0.output.dense.weight", "1.output.dense.weight")):
                parameter[:, 3:9] = 0
            if "1.mlp" in key and key.endswith("down_proj.weight"):
                parameter[:, 9:12] = 0
    model.save_pretrained(root / "base")
    write_tokenizer(root / "base")
    convert(ConvertOptions(str(root / "base"), root / "out", to=("hf", "onnx")))
    return root


def verified(root: Path, out: Path, engine: str) -> Verification:
    return verify(VerifyOptions(str(root / "base"), str(out), None, engine))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_what_conversion_writes_is_verified(
    converted: dict[str, Path], name: str, engine: str
) -> None:
    result = verified(converted[name], converted[name] / "out", engine)
    assert result.passed, result.differences
    parts = (result.tensors_equal, result.config_equal, result.files_equal, result.graph_equal)
    assert (*parts, result.base_read_alike) == (True,) * 5


@pytest.mark.parametrize("case", TAMPERINGS)
def test_tampering_is_found(converted: dict[str, Path], case: str, tmp_path: Path) -> None:
    name, engine, change, said = TAMPERINGS[case]
    shutil.copytree(converted[name] / "out", tmp_path / "out")
    change(tmp_path / "out")
    result = verified(converted[name], tmp_path / "out", engine)
    assert not result.passed
    assert said in "; ".join(result.differences)
    assert result.difference == result.differences[0]
    assert f"DIFFERS: {result.difference}" in result.lines()


DAMAGED: Mapping[str, tuple[str, Change, str]] = {
    "capacity": ("llama", graph_metadata("sgate.capacity"), "metadata sgate.capacity is None, not"),
    "kind": ("llama", graph_metadata("sgate.kind"), "metadata sgate.kind is None, not 'generate'"),
    "layers": ("llama", graph_metadata("sgate.num_layers", "x"), "metadata sgate.num_layers is"),
    "segments": ("bert", graph_metadata("sgate.num_types"), "metadata sgate.num_types is None"),
    "axis": ("llama", graph_attribute("Gather", "axis", 1), "node Gather_"),
    "heads": ("bert", graph_attribute("MultiHeadAttention", "num_heads", 3), "node MultiHeadAtt"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_graph_that_does_not_run_is_a_result(
    converted: dict[str, Path], case: str, tmp_path: Path
) -> None:
    name, change, said = DAMAGED[case]
    shutil.copytree(converted[name] / "out", tmp_path / "out")
    change(tmp_path / "out")
    result = verified(converted[name], tmp_path / "out", "onnx")
    assert not result.passed and result.num_tokens == 0 and result.graph_equal is False
    (difference,) = result.differences
    graph = tmp_path / "out" / "onnx" / "model.onnx"
    assert difference.startswith(f"{graph}: {said}"), difference
    assert f"; and onnx does not run it: {graph}: " in difference
    assert "any outputs: onnx does not run the graph" in result.not_checked
    assert list(result.lines())[-1] == f"DIFFERS: {difference}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (config(rope_parameters=rope_theta), "rope_theta is 500"),
        (config(rms_norm_eps=1e-2), "rms_norm_eps is 0.01"),
        (config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    ],
    ids=["rope_theta", "rms_norm_eps", "hidden_act"],
)
def test_a_config_that_no_longer_fits_its_graph_is_a_failed_check(
    converted: dict[str, Path],
    change: Change,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(converted["llama"] / "out", tmp_path / "out")
    change(tmp_path / "out")
    base, out = str(converted["llama"] / "base"), str(tmp_path / "out")
    assert main(["verify", base, out]) == 1
    lines = capsys.readouterr().out.splitlines()
    (differs,) = (line for line in lines if line.startswith("DIFFERS: "))
    assert said in differs and "the conversion of this base writes" in differs
    (also,) = (line for line in lines if line.startswith("also: "))
    assert "; and onnx does not run it: " in also and "edited" in also
    assert "not checked: any outputs: onnx does not run the graph" in lines
    assert not any("max abs" in line for line in lines)
    stored = read_certificate(tmp_path / "out" / CERTIFICATE_FILE)
    assert (stored["max_abs_diff"], stored["num_tokens"], stored["engine"]) == (None, 0, "onnx")
    line = certificate_line(stored)
    assert re.match("verification FAILED on onnx [0-9.]+ against base", line)
    assert line.endswith(": outputs were not compared")


@pytest.mark.parametrize("function", ["compare_graph", "load_logits_model"])
def test_a_failure_of_the_system_is_none_of_the_folder(
    function: str, converted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.copytree(converted["llama"] / "out", tmp_path / "out")
    config(rms_norm_eps=1e-2)(tmp_path / "out")
    monkeypatch.setattr(f"sgate_serve.verify.outputs.{function}", full)
    with pytest.raises(OSError, match="No space left"):
        verified(converted["llama"], tmp_path / "out", "onnx")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # What the norm over all dimensions does not take out again.
        ("bert", graph_weight("token_type", (1, 5))),
        ("bert", graph_weight("position_embeddings", (150, 5))),
        ("llama", graph_weight(".cos", slice(130, None))),
        ("mistral", graph_attribute("GroupQueryAttention", "local_window_size", 100)),
    ],
    ids=["segment 1", "late position", "second chunk", "window"],
)
def test_prompts_reach_it_without_the_comparison_of_graphs(
    converted: dict[str, Path],
    name: str,
    change: Change,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = GraphComparison()
    monkeypatch.setattr("sgate_serve.verify.outputs.compare_graph", lambda *_: nothing)
    shutil.copytree(converted[name] / "out", tmp_path / "out")
    change(tmp_path / "out")
    result = verified(converted[name], tmp_path / "out", "onnx")
    assert not result.passed and result.difference is not None
    assert result.difference.startswith("first differing layer: 0, by ")
    assert result.max_abs_diff > result.tolerance
