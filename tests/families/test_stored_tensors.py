"""What files hold against what a config says: our reading gives the outputs of transformers'.

Each layout is one that tools write and `from_pretrained` accepts. The reference is the Auto class
on the same folder, not our reader.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.convert import ConvertOptions, convert
from converters.masked import MaskedCheckpoint
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats
from sgate_serve.loaders.logits import load_onnx
from sgate_serve.loaders.torch_model import TorchModel
from tests.families.zoo import (
    AUTO_CLASSES,
    VARIANTS,
    Variant,
    build,
    token_batch,
)

Tensors = dict[str, torch.Tensor]
FIRST = {(variant.family, variant.task): variant for variant in reversed(VARIANTS)}
EVERY_KIND = sorted(FIRST.values(), key=str)
DECODERS = [variant for variant in EVERY_KIND if variant.task == "causal-lm"]
HEAD = "lm_head.weight"


def table_of(variant: Variant, tensors: Tensors) -> str:
    ending = FAMILIES[variant.family].embedding.rpartition(".")[2]
    return next(name for name in tensors if name.endswith(f"{ending}.weight"))


def head_of(variant: Variant) -> str:
    """Return the name that a head has in files."""
    old_names = {new: old for old, new in FAMILIES[variant.family].renames.items()}
    return old_names.get(HEAD, HEAD)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def without_prefix(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    prefix = f"{FAMILIES[variant.family].prefix}."
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def with_buffers(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Add what old releases stored: rotary tables, causal masks, the list of positions."""
    layer = FAMILIES[variant.family].layer.format(0)
    rotary = {f"{layer}.self_attn.rotary_emb.inv_freq": noise(6)}
    masks = {f"{layer}.attn.bias": noise(1, 1, 4, 4), f"{layer}.attn.masked_bias": noise(1)}
    positions = {f"{variant.family}.embeddings.position_ids": torch.arange(64)[None]}
    of_neox = {f"{layer}.attention.{name}": noise(1, 1, 4, 4) for name in ("bias", "masked_bias")}
    of_neox[f"{layer}.attention.rotary_emb.inv_freq"] = noise(6)
    added = {"gpt2": masks, "bert": positions, "roberta": positions, "distilbert": positions}
    added["gpt_neox"] = of_neox
    return tensors | added.get(variant.family, rotary)


def with_other_heads(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Add heads of other tasks, the value head of a trainer, and an unused pooler."""
    family = FAMILIES[variant.family]
    own = family.tasks[variant.task].tensors
    others = {name for head in family.tasks.values() for name in head.tensors} - {*own, HEAD}
    added = {name: noise(3, 48) if name.endswith("weight") else noise(3) for name in others}
    trainers = {"v_head.summary.weight": noise(1, 48), "cls.predictions.bias": noise(5)}
    return tensors | added | trainers


def negative_ids(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    config |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), -1)
    return tensors


def copied_head(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    config["tie_word_embeddings"] = True
    return tensors | {head_of(variant): tensors[table_of(variant, tensors)].clone()}


def own_head(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    config["tie_word_embeddings"] = True
    return tensors | {head_of(variant): noise(*tensors[table_of(variant, tensors)].shape)}


def head_alone(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    config["tie_word_embeddings"] = True
    kept = dict(tensors)
    kept[head_of(variant)] = kept.pop(table_of(variant, tensors))
    return kept


def no_pooler(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    return {name: value for name, value in tensors.items() if "pooler" not in name}


def old_norms(variant: Variant, tensors: Tensors, config: dict[str, Any]) -> Tensors:
    kinds = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    named = tensors.items()
    for new, old in kinds.items():
        named = {name.replace(new, old): value for name, value in named}.items()
    return dict(named)


Layout = Callable[[Variant, Tensors, dict[str, Any]], Tensors]
EVERYWHERE: tuple[Layout, ...] = (without_prefix, with_buffers, with_other_heads, negative_ids)
OF_DECODERS: tuple[Layout, ...] = (copied_head, own_head, head_alone)
OF_ENCODERS: tuple[Layout, ...] = (no_pooler, old_norms)


def cases() -> Iterator[tuple[Variant, Layout]]:
    for variant in EVERY_KIND:
        layouts = EVERYWHERE
        if FAMILIES[variant.family].has_padded_positions:
            # Positions start after the padding id: transformers refuses a negative one.
            layouts = tuple(layout for layout in EVERYWHERE if layout is not negative_ids)
        yield from ((variant, layout) for layout in layouts)
        if variant.task == "causal-lm":
            yield from ((variant, layout) for layout in OF_DECODERS)
        if FAMILIES[variant.family].residual == "post" and variant.task == "base":
            yield from ((variant, layout) for layout in OF_ENCODERS)


def rewrite(variant: Variant, layout: Layout, folder: Path) -> Path:
    build(variant, seed=0).save_pretrained(folder)
    weights, path = folder / "model.safetensors", folder / "config.json"
    config = json.loads(path.read_text())
    tensors = layout(variant, load_file(weights), config)
    save_file(tensors, weights, {"format": "pt"})
    path.write_text(json.dumps(config))
    return folder


def transformers_output(variant: Variant, folder: Path, tokens: torch.Tensor) -> Floats:
    # Its default attention leaves out soft caps.
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AUTO_CLASSES[variant.task].from_pretrained(folder, **settings).eval()
    with torch.no_grad():
        output = model(tokens)
    found = output.logits if "logits" in output else output.last_hidden_state
    return np.asarray(found.reshape(-1, found.shape[-1]))


@pytest.mark.parametrize(
    ("variant", "layout"), [*cases()], ids=lambda value: getattr(value, "__name__", str(value))
)
def test_stored_tensors_are_read_as_transformers_reads_them(
    variant: Variant, layout: Layout, tmp_path: Path
) -> None:
    folder, tokens = rewrite(variant, layout, tmp_path), token_batch(variant, seed=0)[:1]
    expected = transformers_output(variant, folder, tokens)
    reference = TorchModel.masked_dense(MaskedCheckpoint(Checkpoint.open(folder)))
    found = reference.logits(tokens[0].numpy())[: len(expected)]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", DECODERS, ids=str)
@pytest.mark.parametrize("layout", OF_DECODERS)
def test_a_head_is_written_as_it_was_loaded(
    variant: Variant, layout: Layout, tmp_path: Path
) -> None:
    base, tokens = rewrite(variant, layout, tmp_path / "base"), token_batch(variant, seed=0)[:1]
    tokens = tokens[:, :6]
    convert(ConvertOptions(str(base), tmp_path / "out", to=("hf", "onnx")))
    out = Checkpoint.open(tmp_path / "out")
    assert out.config["tie_word_embeddings"] is (layout is not own_head)
    expected = transformers_output(variant, base, tokens)
    found = transformers_output(variant, out.folder, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    engine = load_onnx(out)
    np.testing.assert_allclose(engine.logits(tokens[0].numpy()), expected, atol=1e-4, rtol=1e-4)
    engine.close()


@pytest.mark.parametrize("name", ["embed_out.weight", HEAD])
def test_a_head_keeps_the_name_that_files_have_for_it(name: str, tmp_path: Path) -> None:
    variant = next(each for each in DECODERS if each.family == "gpt_neox")
    base = rewrite(variant, lambda _, tensors, config: tensors, tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    stored[name] = stored.pop("embed_out.weight")
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    convert(ConvertOptions(str(base), tmp_path / "out"))
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(stored)
    tokens = token_batch(variant, seed=0)[:1]
    expected = transformers_output(variant, base, tokens)
    found = transformers_output(variant, tmp_path / "out", tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
