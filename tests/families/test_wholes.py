"""Text parts of models of text and images: what transformers makes of the whole is the judge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.wholes import WHOLES
from sgate_serve.checkpoint.outline.outline import Outline
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, GatesError
from sgate_serve.gates import Gates
from sgate_serve.loaders.logits import load_onnx
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.models.loading import new_classifier
from sgate_serve.models.wholes import load_text_part
from sgate_serve.text.tokenization import read_stop_token_ids
from sgate_serve.training import TrainOptions, train
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.wholes import (
    OUTER,
    build_whole,
    logits_of,
    saved,
    text_ids,
    whole_config,
)
from tests.text_model import SENTENCES, write_tokenizer

IDS = text_ids()
WEIGHTS = "model.safetensors"
NAMES = pytest.mark.parametrize("has_old_names", [True, False], ids=["published", "of the class"])
ALL = pytest.mark.parametrize("model_type", OUTER)


@pytest.fixture(scope="module", params=OUTER)
def whole(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_whole(request.param)


def test_every_entry_is_what_transformers_has() -> None:
    assert OUTER.keys() == WHOLES.keys()
    classes = AutoModelForImageTextToText._model_mapping
    for model_type, whole in WHOLES.items():
        config = CONFIG_MAPPING[model_type]()
        assert classes[type(config)].__name__ == whole.model_class
        assert bool(config.tie_word_embeddings) is whole.ties_head
        assert config.text_config.model_type == whole.family
        assert config.text_config.__class__.__name__ == FAMILIES[whole.family].config_class


@NAMES
def test_the_text_part_computes_what_the_whole_does(
    whole: PreTrainedModel, has_old_names: bool, tmp_path: Path
) -> None:
    base = saved(whole, tmp_path / "base", has_old_names=has_old_names)
    expected = logits_of(whole, IDS)
    assert np.abs(TorchModel.converted(base).logits(IDS) - expected).max() < 1e-5
    convert(ConvertOptions(str(base), tmp_path / "out"))
    # Stock models need none of our classes, and the vision part is gone.
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    entry = WHOLES[whole.config.model_type]
    assert type(stock).__name__ == FAMILIES[entry.family].tasks["causal-lm"].model_class
    assert np.abs(logits_of(stock, IDS) - expected).max() < 1e-5
    names = load_file(tmp_path / "out" / WEIGHTS).keys()
    assert not any(entry.has_other(name) or entry.has_text(name) for name in names)
    assert verify(VerifyOptions(str(base), str(tmp_path / "out"), engine="torch")).passed


def _closed_units(base: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    """Close units of the MLPs, of mixtures those of the shared expert."""
    random = np.random.default_rng(1)
    found = {}
    for index, units in enumerate(_units(base)):
        module = ".mlp.shared_expert" if base.spec.layers[index].experts else ""
        kept = random.random(units) > 0.2 + 0.2 * index
        name = base.spec.family.layer_name(index)
        found[f"{name}{module}.mlp_units"] = kept.astype(np.float32)
    return found


def _units(base: Checkpoint) -> list[int]:
    return [layer.shared_units or layer.mlp_units for layer in base.spec.layers]


def _write_gates(base: Checkpoint, values: dict[str, Any], folder: Path) -> Path:
    Gates("test", base.spec.family.name, "coupled", base.fingerprint, values).write(folder)
    return folder


@ALL
def test_masked_wholes_become_smaller_models_of_text(model_type: str, tmp_path: Path) -> None:
    """Gates may name the modules of the whole; zeros in its own weights are the reference."""
    variant = 0 if model_type.startswith("qwen") else 1
    model: Any = build_whole(model_type, variant)
    base = Checkpoint.open(saved(model, tmp_path / "base", has_old_names=True))
    units = _closed_units(base)
    alone = _write_gates(base, units, tmp_path / "alone")
    of_whole = {key.replace("model.", "model.language_model.", 1): v for key, v in units.items()}
    gates = _write_gates(base, of_whole, tmp_path / "gates")
    with torch.no_grad():
        for layer, closed in zip(model.get_decoder().layers, units.values(), strict=True):
            mlp = getattr(layer.mlp, "shared_expert", layer.mlp)
            mlp.down_proj.weight[:, torch.from_numpy(closed) == 0] = 0
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates))
    out = Checkpoint.open(tmp_path / "out")
    assert _units(out) == [int(kept.sum()) for kept in units.values()]
    found = TorchModel.converted(out.folder).logits(IDS)
    assert np.abs(found - logits_of(model, IDS)).max() < 1e-4
    for given in (gates, alone):
        verified = verify(VerifyOptions(str(base.folder), str(out.folder), given, "torch"))
        assert verified.passed and verified.base_read_alike, verified.difference


def test_a_gate_under_both_names_is_refused(tmp_path: Path) -> None:
    base = Checkpoint.open(saved(build_whole("gemma3"), tmp_path / "base", has_old_names=True))
    ((key, units), *_) = _closed_units(base).items()
    both = {key: units, key.replace("model.", "model.language_model.", 1): units}
    gates = _write_gates(base, both, tmp_path / "gates")
    with pytest.raises(GatesError, match=f"two keys mean {key}, one of them is model"):
        open_masked(base.folder, gates)


def test_adapters_of_peft_may_name_the_whole(tmp_path: Path) -> None:
    base = Checkpoint.open(saved(build_whole("gemma4"), tmp_path / "base", has_old_names=True))
    rows = np.zeros(30, np.float32)
    rows[::3] = -9
    prefix = "base_model.model.model.language_model.layers.1.mlp.up_proj"
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "FINEGATES"}')
    save_file({f"{prefix}.finegates_rows": rows}, folder / "adapter_model.safetensors")
    masked = open_masked(base.folder, folder)
    assert masked.gates is not None
    assert (masked.gates.values["model.layers.1.mlp.up_proj.rows"] == 0).sum() == 10


def test_graphs_are_of_the_text_part(tmp_path: Path) -> None:
    model = build_whole("gemma3")
    base = Checkpoint.open(saved(model, tmp_path, has_old_names=True))
    engine = load_onnx(base)
    assert np.abs(engine.logits(IDS) - logits_of(model, IDS)).max() < 1e-4
    engine.close()


# The classes differ in what they take where the outer level says nothing.
@pytest.mark.parametrize(
    ("model_type", "outer"),
    [("gemma3", True), ("gemma3", False), ("gemma3", None), ("qwen3_5", None)],
)
@pytest.mark.parametrize("inner", [True, False, None])
@pytest.mark.parametrize("head", ["none", "same", "other"])
def test_heads_are_tied_as_in_the_whole(
    model_type: str, outer: bool | None, inner: bool | None, head: str, tmp_path: Path
) -> None:
    model = build_whole(model_type, tie_word_embeddings=False)
    weight: Any = model.get_output_embeddings().weight
    if head == "same":
        weight.data = model.get_input_embeddings().weight.data.clone()
    saved(model, tmp_path, has_old_names=False)
    if head == "none":
        weights = load_file(tmp_path / WEIGHTS)
        del weights["lm_head.weight"]
        save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    for level, tied in ((config, outer), (config["text_config"], inner)):
        level.pop("tie_word_embeddings", None)
        level |= {} if tied is None else {"tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(config))
    is_tied = WHOLES[model_type].ties_head if outer is None else outer
    if head == "none" and not is_tied:
        with pytest.raises(CheckpointError, match=r'lm_head.weight is missing: .*"tie_word_embe'):
            Checkpoint.open(tmp_path)
        return
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    ours = TorchModel.converted(tmp_path)
    assert np.abs(ours.logits(IDS) - logits_of(theirs, IDS)).max() < 1e-5
    assert TorchModel.by_transformers(Checkpoint.open(tmp_path)).tensor_digests() == (
        ours.tensor_digests()
    )


def test_a_text_part_that_computes_otherwise_is_noticed(tmp_path: Path) -> None:
    text = {**whole_config("gemma3")["text_config"], "final_logit_softcapping": 2.0}
    saved(build_whole("gemma3", text_config=text), tmp_path, has_old_names=True)
    with pytest.raises(CheckpointError, match="Gemma3ForConditionalGeneration computes otherwise"):
        load_text_part(tmp_path)


@ALL
def test_published_files_have_no_faults(model_type: str, tmp_path: Path) -> None:
    """They leave out what is the default of a class, and have layers that predict tokens."""
    saved(build_whole(model_type), tmp_path, has_old_names=True)
    config = json.loads((tmp_path / "config.json").read_text())
    if WHOLES[model_type].ties_head and "lm_head" not in str(load_file(tmp_path / WEIGHTS).keys()):
        del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    layer = {"mtp.layers.0.mlp.down_proj.weight": np.zeros((48, 30), np.float32)}
    weights = load_file(tmp_path / WEIGHTS) | (layer if model_type == "qwen3_5" else {})
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    outline = Outline.of(tmp_path)
    assert outline.is_supported and not outline.faults
    assert len(outline.stack) == len(Checkpoint.open(tmp_path).spec.layers)


@ALL
def test_every_command_says_once_what_is_left_out(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_whole(model_type)
    saved(model, tmp_path, has_old_names=True)
    others = [
        value.nbytes
        for name, value in load_file(tmp_path / WEIGHTS).items()
        if not name.startswith(("model.language_model.", "language_model.", "lm_head."))
    ]
    with caplog.at_level("INFO"):
        Checkpoint.open(tmp_path)
        Checkpoint.open(tmp_path)
    assert len(others) > 10
    assert [message for message in caplog.messages if "left out" in message] == [
        f"{tmp_path}: the text part of a {model_type} model is read; {len(others)} tensors of "
        f"images or sound ({sum(others):,} bytes) are left out"
    ]


def test_the_text_part_of_qwen_saved_with_the_names_of_the_whole_is_read(tmp_path: Path) -> None:
    """Which is how transformers saves it by default, and reads it."""
    model = build_whole("qwen3_5")
    saved(model, tmp_path / "whole", has_old_names=True)
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    text.save_pretrained(tmp_path / "text")
    assert "model.language_model.norm.weight" in load_file(tmp_path / "text" / WEIGHTS)
    convert(ConvertOptions(str(tmp_path / "text"), tmp_path / "out"))
    assert "model.norm.weight" in load_file(tmp_path / "out" / WEIGHTS)
    verified = verify(VerifyOptions(str(tmp_path / "text"), str(tmp_path / "out"), engine="torch"))
    assert verified.passed, verified.difference
    found = TorchModel.converted(tmp_path / "out").logits(IDS)
    assert np.abs(found - logits_of(model, IDS)).max() < 1e-5


def test_ids_that_end_a_text_are_those_of_the_whole(tmp_path: Path) -> None:
    """Generation takes them from the outer level, and from the text where that has none."""
    saved(build_whole("gemma3"), tmp_path, has_old_names=True)
    (tmp_path / "generation_config.json").unlink()
    for outer, expected in (([1, 7], {1, 7}), (None, {5})):
        config = whole_config("gemma3", eos_token_id=outer)
        config["text_config"] = {**config["text_config"], "eos_token_id": 5}
        (tmp_path / "config.json").write_text(json.dumps(config))
        read = Checkpoint.open(tmp_path).config["eos_token_id"]
        assert set(read if isinstance(read, list) else [read]) == expected
        assert read_stop_token_ids(tmp_path, None) == expected


def test_training_starts_from_the_weights_of_the_text(tmp_path: Path) -> None:
    config = whole_config("gemma3")
    sizes = {**config["text_config"], "vocab_size": 400, "intermediate_size": 96}
    model = build_whole("gemma3", text_config=sizes, image_token_index=399)
    saved(model, tmp_path / "base", has_old_names=True)
    write_tokenizer(tmp_path / "base")
    (tmp_path / "text.txt").write_text("\n\n".join(SENTENCES * 60), encoding="utf-8")
    options = TrainOptions(
        base=str(tmp_path / "base"),
        data=tmp_path / "text.txt",
        out=tmp_path / "gates",
        steps=2,
        dense_steps=1,
        batch_size=2,
        seq_len=16,
        eval_blocks=4,
        precision="fp32",
        no_control=True,
    )
    train(options)
    base, out = tmp_path / "gates" / "base", tmp_path / "out"
    assert Checkpoint.open(base).whole is None
    convert(ConvertOptions(str(base), out, options.out))
    assert verify(VerifyOptions(str(base), str(out), options.out, "torch")).passed


def test_a_new_classifier_has_the_stack_of_the_whole(tmp_path: Path) -> None:
    model: Any = build_whole("qwen3_5")
    base = Checkpoint.open(saved(model, tmp_path, has_old_names=True))
    made: Any = new_classifier(base, {"num_labels": 5, "id2label": dict(enumerate("abcde"))})
    assert made.score.weight.shape == (5, base.spec.hidden_size)
    stack = model.get_decoder().state_dict()
    assert made.model.state_dict().keys() == stack.keys()
    assert all(torch.equal(made.model.state_dict()[name], stack[name]) for name in stack)
