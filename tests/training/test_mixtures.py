"""Training of mixtures of experts, the whole way; what it refuses."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
import torch

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import coupled_sites
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.option_checks import check_options
from sgate_serve.training.phases.tuning import closed_linears
from sgate_serve.training.tasks.causal_lm import load_frozen
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.mxfp4_folders import pack_folder
from tests.small_llama import random_tokens
from tests.training.small_mixtures import MIXTURES, mixture_run, small_mixture
from tests.training.small_run import small_run

TOKENS = random_tokens(12)
BY_REAP: dict[str, Any] = {"gates": "experts", "method": "reap", "target": 0.25}
# Besides LoRA: the routers learn, the dense model is the teacher, the base is trained first.
WAYS: dict[str, dict[str, Any]] = {
    "reap": {**BY_REAP, "recovery": "full"},
    "fisher": {"gates": "experts", "target": 0.25, "distill": 0.5},
    "units": {"target": 0.3, "no_control": False},
    "biases": {"target": 0.3, "recovery": "bias"},
    "trained": {"target": 0.3, "method": "gates", "dense_steps": 2},
}
CASES = [
    *(("reap", family) for family in MIXTURES),
    *[("units", "qwen2_moe"), ("units", "qwen3_moe"), ("fisher", "mixtral")],
    *[("trained", "mixtral"), ("trained", "qwen2_moe"), ("trained", "gpt_oss")],
    *[("units", "qwen3_5_moe_text"), ("trained", "qwen3_next"), ("biases", "gpt_oss")],
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("way", "family"), CASES)
def test_a_mixture_trains_converts_and_verifies(way: str, family: str, tmp_path: Path) -> None:
    options = mixture_run(tmp_path, family, **WAYS[way])
    given = Checkpoint.open(options.base)
    metrics = train(options).metrics
    trained = options.out / "base"
    base = Checkpoint.open(trained if trained.exists() else options.base)
    assert base.config == given.config and base.tensors.keys() == given.tensors.keys()
    gates = Gates.read(options.out)
    assert {key.rpartition(".")[2] for key in gates.values} == (
        {"experts"} if options.gates == "experts" else {"mlp_units", "kv_groups"}
    )
    assert gates.deltas.keys() <= base.tensors.keys()
    closed = closed_linears(base.spec, gates.masks(base.spec))
    assert bool(closed) == (options.gates == "experts")
    assert not closed & {name.removesuffix(".weight") for name in gates.deltas}
    assert metrics["removed"] == pytest.approx(options.weight_target, abs=0.02)
    has_graph = way == "reap"
    engine, to = ("onnx", ("hf", "onnx")) if has_graph else ("torch", ("hf",))
    convert(ConvertOptions(str(base.folder), tmp_path / "out", options.out, to=to))
    found = verify(VerifyOptions(str(base.folder), str(tmp_path / "out"), options.out, engine))
    assert found.passed and found.tensors_equal, found.difference


def test_a_base_in_4_bits_trains_converts_and_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps on the dense model write it as a base of its own, in floats."""
    monkeypatch.setitem(MIXTURES, "gpt_oss", {**MIXTURES["gpt_oss"], "intermediate_size": 32})
    options = mixture_run(tmp_path, "gpt_oss", **BY_REAP, dense_steps=2)
    packed = pack_folder(Path(options.base), tmp_path / "packed")
    copytree(
        options.base,
        packed,
        ignore=ignore_patterns("*.safetensors", "config.json"),
        dirs_exist_ok=True,
    )
    options = replace(options, base=str(packed))
    assert train(options).metrics["removed"] == pytest.approx(0.25, abs=0.04)
    base = options.out / "base"
    assert Checkpoint.open(base).config == {
        **Checkpoint.open(packed).config,
        "dtype": "float32",
    }
    convert(ConvertOptions(str(base), tmp_path / "out", options.out))
    found = verify(VerifyOptions(str(base), str(tmp_path / "out"), options.out, "torch"))
    assert found.passed and found.base_read_alike, found.difference


@pytest.mark.parametrize("family", MIXTURES)
def test_a_masked_mixture_is_the_reference_and_its_router_learns(
    family: str, tmp_path: Path
) -> None:
    small_mixture(family).save_pretrained(tmp_path / "base")
    base, rng = Checkpoint.open(tmp_path / "base"), np.random.default_rng(0)
    values = {}
    for site in coupled_sites(base.spec):
        values[site.key] = (rng.random(site.num_gates) > 0.3).astype(np.float32)
        if site.kind == "experts":
            # Fewer than a token uses, in one layer.
            values[site.key][:] = np.arange(6) < (1 if site.layer == 0 else 4)
    gates = Gates("by hand", family, "coupled", base.fingerprint, values)
    gates.write(tmp_path / "gates")
    expected = TorchModel.masked_dense(open_masked(tmp_path / "base", tmp_path / "gates"))
    model, ids = load_frozen(Checkpoint.open(tmp_path / "base")), torch.from_numpy(TOKENS)[None]
    dense = TorchModel.by_transformers(base).logits(TOKENS)
    with torch.no_grad():
        np.testing.assert_allclose(model(input_ids=ids).logits[0], dense, rtol=1e-4, atol=1e-5)
    with masked_by(model, gates.masks(base.spec)):
        logits = model(input_ids=ids).logits
        np.testing.assert_allclose(
            logits[0].detach(), expected.logits(TOKENS), rtol=1e-4, atol=1e-5
        )
        *_, last = (s.module for s in coupled_sites(base.spec) if s.kind == "experts")
        router = model.get_parameter(f"{last}.weight").requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(input_ids=ids).logits.square().sum(), router)
    assert (gradient[:4] != 0).any() and (gradient[4:] == 0).all()
    with torch.no_grad():
        np.testing.assert_allclose(model(input_ids=ids).logits[0], dense, rtol=1e-4, atol=1e-5)


def test_a_mask_of_experts_is_recovered(tmp_path: Path) -> None:
    first = mixture_run(tmp_path, "mixtral", **BY_REAP, recovery="none", no_control=False)
    train(first)
    given: dict[str, Any] = {
        "mask": first.out,
        "out": tmp_path / "more",
        "recovery": "lora",
        "no_control": True,
    }
    again = replace(first, gates="coupled", method="fisher", target=None, **given)
    assert train(again).metrics["removed"] == pytest.approx(0.25)
    before, after = (Gates.read(options.out) for options in (first, again))
    assert all(np.array_equal(after.values[key], before.values[key]) for key in before.values)
    assert not before.deltas and after.deltas


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": "row-col"}, "--gates row-col: .*base is a mixture of experts.*; use --gates c"),
        ({"target_speedup": 1.3}, "--target-speedup: .*base is a mixture .*; give --target instea"),
        ({"method": "wanda"}, "--method wanda averages .*base is a mixture, .*; use --method fis"),
        ({"recovery": "bias"}, "--recovery bias: the experts of .* have no biases.*; use --recov"),
        (
            {"method": "gates", "gates_with": "bias"},
            "--gates-with bias: the experts of .* have no biases.*; use --gates-with lora",
        ),
    ],
)
def test_what_experts_do_not_have_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = mixture_run(tmp_path, "mixtral", **changes)
    with pytest.raises(TrainingError, match=message):
        train(options)
    assert not options.out.exists()


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    options = small_run(tmp_path, gates="experts")
    with pytest.raises(TrainingError, match="base is not a mixture of experts; use --gates coup"):
        train(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "reap"}, "--method reap scores whole experts: add --gates experts, or use"),
        (
            {"gates": "experts", "method": "gates"},
            "--method gates: whole experts are scored by reap, fisher, random; use one of these",
        ),
        (
            {**BY_REAP, "balance": "joint"},
            "--balance joint compares Fisher scores of coupled gates",
        ),
        (
            {**BY_REAP, "gate_block": 8},
            "--gate-block is for coupled gates: .* drop --gates experts",
        ),
        (
            {"gates": "experts", "target_speedup": 1.3},
            "--target-speedup weighs seconds .* --gates coupled",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    options = TrainOptions(base="base", data=Path("text.txt"), out=Path("out"))
    with pytest.raises(TrainingError, match=message):
        check_options(replace(options, **changes))
