"""Our reading of a config against transformers': every difference and every refusal is named."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import Dense
from sgate_serve.architecture.rope import Rope
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import CheckpointError
from sgate_serve.models.config_check import check_reading
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.config_judge import config_of, write_config
from tests.families.config_values import LINEAR as LINEAR_ROPE
from tests.families.zoo import VARIANTS, ZOO, Variant, build

Misreading = Callable[[ModelSpec], ModelSpec]


def first(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    return (value, *values[1:])


def with_norm_biases(spec: ModelSpec) -> ModelSpec:
    return replace(spec, outside=spec.family.outside)


# A constant read otherwise, in a family whose models depend on it, and the field that is named.
MISREADINGS: dict[str, tuple[str, Misreading]] = {
    "rms_norm_eps of": ("phi3", lambda s: replace(s, norm_eps=1e-6)),
    "layer_norm_epsilon of": ("gpt2", lambda s: replace(s, norm_eps=1e-6)),
    "eps of": ("distilbert", lambda s: replace(s, norm_eps=1e-5)),
    "hidden_act of layer 0": ("bert", lambda s: replace(s, activation="gelu_new")),
    "hidden_activation of layer 0": ("gemma2", lambda s: replace(s, activation="gelu")),
    "the scale of layer 0": (
        "gemma3_text",
        lambda s: replace(s, attention_scales=first(s.attention_scales, 0.5)),
    ),
    "head_dim of layer 1": (
        "gpt2",
        lambda s: replace(
            s, layers=(s.layers[0], replace(s.layers[1], num_heads=8, num_kv_heads=8, head_dim=4))
        ),
    ),
    "the window of layer 1": (
        "modernbert",
        lambda s: replace(s, windows=(None, 2 * s.windows[1] if s.windows[1] else None)),
    ),
    "the shape of model.embeddings.norm.bias": ("modernbert", with_norm_biases),
    "the window of layer 0": ("qwen2", lambda s: replace(s, windows=first(s.windows, 4))),
    "attn_logit_softcapping": ("gemma2", lambda s: replace(s, attention_softcap=None)),
    "final_logit_softcapping": ("llama", lambda s: replace(s, logit_softcap=4.0)),
    "rope_theta of layer 0": (
        "mistral",
        lambda s: replace(s, ropes=first(s.ropes, Rope({"rope_type": "default", "rope_theta": 9}))),
    ),
    "factor of layer 0": (
        "qwen3",
        lambda s: replace(s, ropes=first(s.ropes, Rope({**LINEAR_ROPE, "rope_theta": 100.0}))),
    ),
    "rotary pairs of layer 1": (
        "phi3",
        lambda s: replace(s, ropes=(s.ropes[0], replace(s.ropes[1], rotated_share=0.5))),  # type: ignore[type-var]
    ),
    "the scale of embeddings": (
        "gemma2",
        lambda s: replace(s, family=replace(s.family, scales_embeddings=False)),
    ),
    "use_parallel_residual of layer 0": (
        "gpt_neox",
        lambda s: replace(s, has_parallel_blocks=False),
    ),
    "the first position": ("roberta", lambda s: replace(s, first_position=0)),
    "n_positions": ("gpt2", lambda s: replace(s, num_positions=63)),
    "num_hidden_layers": (
        "llama",
        lambda s: replace(
            s,
            layers=s.layers[:1],
            windows=s.windows[:1],
            ropes=s.ropes[:1],
            attention_scales=s.attention_scales[:1],
        ),
    ),
    "tie_word_embeddings": ("llama", lambda s: replace(s, tied_head=True)),
    "tie_word_embeddings is False": ("gemma2", lambda s: replace(s, tied_head=False)),
    "the shape of lm_head.weight": ("qwen2", lambda s: replace(s, vocab_size=30)),
    "the shape of model.layers.0.self_attn.k_proj.bias": (
        "llama",
        lambda s: replace(s, biased_roles=frozenset({"key"})),
    ),
    "the model class": (
        "mistral",
        lambda s: replace(s, on_top=FAMILIES["llama"].tasks["causal-lm"]),
    ),
}


@pytest.mark.parametrize("field", MISREADINGS)
def test_every_constant_that_is_read_otherwise_is_named(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, misread = MISREADINGS[field]
    write_config(config_of(family), tmp_path)
    check_reading(tmp_path)
    spec = misread(ModelSpec.from_config(config_of(family), "config.json"))
    monkeypatch.setattr(ModelSpec, "from_config", lambda *_: spec)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/config.json: {field}.* as sgate reads"):
        check_reading(tmp_path)


HEAD_MISREADINGS: dict[str, Misreading] = {
    "classifier_pooling": lambda s: replace(s, on_top=replace(s.on_top, pooling="mean")),
    "classifier_activation": lambda s: replace(
        s, on_top=replace(s.on_top, dense=Dense("head.dense", "classifier", "relu", "head.norm"))
    ),
}


@pytest.mark.parametrize("field", HEAD_MISREADINGS)
def test_every_setting_of_a_head_that_is_read_otherwise_is_named(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("modernbert", "classification")
    write_config(config, tmp_path)
    check_reading(tmp_path)
    spec = HEAD_MISREADINGS[field](ModelSpec.from_config(config, "config.json"))
    monkeypatch.setattr(ModelSpec, "from_config", lambda *_: spec)
    with pytest.raises(CheckpointError, match=f"{field} is .* as sgate reads"):
        check_reading(tmp_path)


def test_labels_that_are_counted_otherwise_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("bert", "classification")
    write_config(config, tmp_path)
    spec = replace(ModelSpec.from_config(config, "config.json"), num_labels=2)
    monkeypatch.setattr(ModelSpec, "from_config", lambda *_: spec)
    message = r"num_labels is 2 as sgate reads it and 3 as transformers 5\.\S+ does; write it in"
    with pytest.raises(CheckpointError, match=message):
        check_reading(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_bases_and_their_conversions_are_read_alike(variant: Variant, tmp_path: Path) -> None:
    build(variant, seed=0).save_pretrained(tmp_path / "base")
    check_reading(tmp_path / "base")
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    check_reading(tmp_path / "out")


def saved(folder: Path, **changes: Any) -> Path:
    build(ZOO["llama"][0], seed=0).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def read_by_nobody(patch: pytest.MonkeyPatch) -> None:
    """Let transformers refuse every llama, whatever its config says."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("one line\n  and another")

    patch.setattr("transformers.LlamaConfig.from_dict", refuse)


def test_a_config_that_transformers_refuses_is_converted_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tmp_path / "base")
    convert(ConvertOptions(str(base), tmp_path / "out"))
    read_by_nobody(monkeypatch)
    reason = r"transformers 5\.\S+ refuses this config \(AssertionError: one line and another\)"
    with pytest.raises(CheckpointError, match=f"^{base}/config.json: {reason}; correct the field$"):
        convert(ConvertOptions(str(base), tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(CheckpointError, match=f"^{base}/config.json: {reason}"):
        verify(VerifyOptions(str(base), str(tmp_path / "out"), engine="torch"))


def test_a_written_config_that_transformers_refuses_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = saved(tmp_path / "base"), tmp_path / "out"
    # As if it refused only what is written: the base is not asked.
    monkeypatch.setattr("converters.convert.check_with_transformers", lambda *_: None)
    read_by_nobody(monkeypatch)
    with pytest.raises(CheckpointError, match=f"^{out}/config.json: transformers .* refuses this "):
        convert(ConvertOptions(str(base), out))
    assert not out.exists()


def test_conversion_needs_no_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(tmp_path / "base")
    read_by_nobody(monkeypatch)
    monkeypatch.setattr("converters.second_reading.missing_packages", lambda names: names)
    convert(ConvertOptions(str(base), tmp_path / "out"))
    assert (tmp_path / "out" / "config.json").exists()


def test_transformers_that_cannot_be_imported_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sgate_serve.models.config_check", None)
    convert(ConvertOptions(str(saved(tmp_path / "base")), tmp_path / "out"))
    assert "transformers cannot be imported, so it checks no config" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, found null"),
        ({"rope_scaling": {"type": "su"}}, "rope_parameters: rope_type 'su' is not one that"),
    ],
)
def test_values_that_transformers_refuses_are_named_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = saved(tmp_path / "base", **changes)
    with pytest.raises(CheckpointError, match=f"^{base}/config.json: {message}") as refused:
        convert(ConvertOptions(str(base), tmp_path / "out"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
