"""Every family's base is read as transformers' auto class reads it, and a misreading is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.convert import ConvertOptions, convert
from converters.masked import MaskedCheckpoint
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.models import loading
from sgate_serve.verify.prompts import random_prompts
from sgate_serve.verify.reading import Reading, compare_reading
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import VARIANTS, ZOO, Variant, build


def reading_of(folder: Path) -> Reading:
    base = Checkpoint.open(folder)
    return compare_reading(base, random_prompts(VerifyOptions("", ""), base, "torch"))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_is_read_as_transformers_reads_it(
    variant: Variant, dtype: torch.dtype, tmp_path: Path
) -> None:
    build(variant, seed=0).to(dtype).save_pretrained(tmp_path)
    assert reading_of(tmp_path) == Reading()


def own_head(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))


def no_pooler(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("variant", "change"),
    [(ZOO["llama"][0], own_head), (ZOO["bert"][0], no_pooler)],
    ids=["own head", "no pooler"],
)
def test_what_the_tensors_decide_is_verified(
    variant: Variant, change: Callable[[Path], None], tmp_path: Path
) -> None:
    """A head of its own under a flag that ties it, and a pooler that is not stored."""
    build(variant, seed=0).save_pretrained(tmp_path / "base")
    change(tmp_path / "base")
    assert reading_of(tmp_path / "base") == Reading()
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    result = verify(VerifyOptions(str(tmp_path / "base"), str(tmp_path / "out"), engine="torch"))
    assert result.passed and result.base_read_alike, result.differences


def test_a_converted_folder_is_a_base_like_others(tmp_path: Path) -> None:
    """Its index vectors are spread into whole matrices, so only outputs are compared."""
    build(ZOO["llama"][0], seed=0).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.gate_proj.weight"][:, ::2] = 0
    save_file(weights, path, metadata={"format": "pt"})
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", index_price=0))
    assert Checkpoint.open(tmp_path / "out").spec.lowered
    assert reading_of(tmp_path / "out") == Reading()


def flipped_rows(read: Any) -> Any:
    """Read the embedding of one token as that of another, which no prompt need contain."""

    def misread(self: MaskedCheckpoint, name: str, *parts: Any) -> Any:
        value = read(self, name, *parts)
        if not name.endswith("embed_tokens.weight"):
            return value
        rows = np.arange(len(value))
        rows[[-1, -2]] = rows[[-2, -1]]
        return value[rows]

    return misread


def slow_rotation(config_from: Any) -> Any:
    def misread(config: dict[str, Any]) -> Any:
        return config_from(config | {"rope_parameters": {"rope_theta": 77.0}})

    return misread


@pytest.mark.parametrize(
    ("place", "name", "misreading", "said"),
    [
        (MaskedCheckpoint, "read", flipped_rows, "tensor model.embed_tokens.weight is another one"),
        (loading, "config_from", slow_rotation, "rope_parameters of the config is"),
    ],
    ids=["tensor", "config"],
)
def test_a_misreading_fails_verification(
    place: Any,
    name: str,
    misreading: Any,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference and conversion read alike, so that nothing else can see it."""
    build(ZOO["llama"][0], seed=0).save_pretrained(tmp_path / "base")
    monkeypatch.setattr(place, name, misreading(getattr(place, name)))
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    result = verify(VerifyOptions(str(tmp_path / "base"), str(tmp_path / "out"), engine="torch"))
    assert result.max_abs_diff < result.tolerance and result.tensors_equal
    assert not result.passed and result.base_read_alike is False
    assert f"is read otherwise than transformers reads it: {said}" in str(result.difference)
    assert "the base is read NOT as transformers reads it" in result.lines()


def test_a_tie_that_is_misread_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As releases before this check read a flag that ties a head with weights of its own."""
    build(ZOO["llama"][0], seed=0).save_pretrained(tmp_path)
    own_head(tmp_path)
    base = Checkpoint.open(tmp_path)
    assert not base.spec.tied_head
    tied = replace(
        base,
        spec=replace(base.spec, tied_head=True),
        config={**base.config, "tie_word_embeddings": True},
    )
    prompts = random_prompts(VerifyOptions("", ""), base, "torch")
    found = compare_reading(tied, prompts).difference
    assert found is not None and "tensor lm_head.weight is another one" in found


def test_a_base_that_transformers_cannot_load_is_no_reference(tmp_path: Path) -> None:
    build(ZOO["llama"][0], seed=0).save_pretrained(tmp_path)
    base = Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    missing = replace(base, tensors=Checkpoint.open(copy_of(tmp_path)).tensors)
    prompts = random_prompts(VerifyOptions("", ""), base, "torch")
    found = compare_reading(missing, prompts).difference
    assert found is not None
    assert f"transformers itself cannot load {tmp_path} (" in found


def copy_of(folder: Path) -> Path:
    copied = folder / "copy"
    copied.mkdir()
    (copied / "config.json").write_bytes((folder / "config.json").read_bytes())
    (copied / "model.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    return copied
