"""Mixtures of experts: what closing an expert means, what does not close one, and other tools."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from converters.convert import ConvertOptions, convert, make_plan, open_masked
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import DOWN
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.stacks import slot_of
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError, GatesError, PlanError
from sgate_serve.gates.keys import coupled_sites
from sgate_serve.loaders.torch_model import TorchModel, dense_model
from sgate_serve.plan import Target
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import write_gates
from tests.families.float64 import logits64
from tests.families.zoo import VARIANTS, ZOO, Variant, build, token_batch

ONE_EXPERT = "mlp.experts.0.down_proj.weight"
MIXTURES = [one for one in VARIANTS if one.has_experts and one.task == "causal-lm"]
# Those whose files have tensors for each expert.
ONE_BY_ONE = [one for one in MIXTURES if slot_of(ONE_EXPERT, FAMILIES[one.family]) is None]
WEIGHTS = "model.safetensors"


def write_base(variant: Variant, folder: Path) -> Checkpoint:
    build(variant, seed=0).save_pretrained(folder)
    return Checkpoint.open(folder)


def mixture_layers(base: Checkpoint) -> list[int]:
    return [index for index, layer in enumerate(base.spec.layers) if layer.experts]


def router_name(base: Checkpoint, layer: int) -> str:
    assert base.spec.family.mixture is not None
    return f"{base.spec.family.layer_name(layer)}.{base.spec.family.mixture.router}"


def closed(*experts: int) -> NDArray[np.float32]:
    return np.isin(np.arange(5), experts, invert=True).astype(np.float32)


def mask_routers(model: nn.Module, normalizes: bool, gates: dict[int, Any]) -> None:
    """Give routers the formula of the reference: closed logits are -infinity, all else as it is.

    A sigmoid of that is 0, and with a correction added the expert is still never chosen.
    """

    def choose(router: Any, is_closed: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.reshape(-1, x.shape[-1])
        logits = nn.functional.linear(x, router.weight, getattr(router, "bias", None))
        logits = logits.masked_fill(is_closed, -torch.inf)
        correction = getattr(router, "e_score_correction_bias", None)
        scores = torch.softmax(logits, -1) if correction is None else torch.sigmoid(logits)
        choice = scores if correction is None else scores + correction
        index = torch.topk(choice.masked_fill(is_closed, -torch.inf), router.top_k, dim=-1).indices
        shares = scores.gather(-1, index)
        shares = shares / shares.sum(-1, keepdim=True) if normalizes else shares
        return logits, shares * getattr(router, "routed_scaling_factor", 1), index

    for layer, values in gates.items():
        is_closed = torch.from_numpy(values == 0)
        block: Any = model.get_submodule(f"model.layers.{layer}.mlp")
        if not hasattr(block, "gate") and not hasattr(block, "router"):
            router = model.get_submodule(f"model.layers.{layer}.router")
            router.forward = lambda x, r=router, c=is_closed: choose_beside_an_mlp(r, c, x)
            continue
        router = block.gate if hasattr(block, "gate") else block.router
        router.forward = lambda x, r=router, c=is_closed: choose(r, c, x)


def choose_beside_an_mlp(
    router: Any, is_closed: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Do the same for Gemma 4, whose router normalizes the stream itself and scales shares."""
    x = x / (x.pow(2).mean(-1, keepdim=True) + router.norm.eps).sqrt()
    logits = (x * router.scale / x.shape[-1] ** 0.5) @ router.proj.weight.T
    scores = torch.softmax(logits.masked_fill(is_closed, -torch.inf), -1)
    shares, index = scores.topk(router.config.top_k_experts, dim=-1)
    shares = shares / shares.sum(-1, keepdim=True) * router.per_expert_scale[index]
    return scores, shares, index


@pytest.mark.parametrize("variant", MIXTURES, ids=str)
def test_a_closed_expert_is_one_whose_logit_is_minus_infinity(
    variant: Variant, tmp_path: Path
) -> None:
    base = write_base(variant, tmp_path / "base")
    layers = mixture_layers(base)
    # In the last mixture fewer experts stay than a token uses.
    gates = {layer: closed(1, 3) for layer in layers[:-1]} | {layers[-1]: closed(0, 1, 2, 4)}
    name = base.spec.family.layer_name
    write_gates(base, tmp_path / "gates", **{f"{name(k)}.experts": v for k, v in gates.items()})
    ids, stock = token_batch(variant, 0), dense_model(open_masked(base.folder, None), torch.float64)
    mask_routers(stock, base.spec.norm_topk_prob, gates)
    expected = logits64(stock, ids)
    masked = open_masked(tmp_path / "base", tmp_path / "gates")
    found = logits64(dense_model(masked, torch.float64), ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", tmp_path / "gates"))
    out = Checkpoint.open(tmp_path / "out")
    widths = base.spec.layers[layers[-1]].experts
    assert out.spec.layers[layers[-1]].experts == widths[:1]
    assert out.spec.layers[layers[-1]].top_k == 1
    rows = TorchModel.converted(tmp_path / "out").logits(ids[0].numpy())
    np.testing.assert_allclose(rows, expected[0], rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("variant", MIXTURES[::2], ids=str)
def test_zeros_close_no_expert(variant: Variant, tmp_path: Path) -> None:
    """One that writes nothing keeps its row, and one whose row is zero keeps its units."""
    base = write_base(variant, tmp_path / "base")
    layer, stored = mixture_layers(base)[0], load_file(tmp_path / "base" / WEIGHTS)
    down = base.spec.family.expert_linear(layer, 1, DOWN)
    slot = slot_of(f"{down}.weight", base.spec.family)
    (stored[f"{down}.weight"] if slot is None else slot.of(stored[slot.stack]))[:] = 0
    stored[f"{router_name(base, layer)}.weight"][2] = 0
    save_file(stored, tmp_path / "base" / WEIGHTS, {"format": "pt"})
    plan = make_plan(open_masked(tmp_path / "base", None)).layers[layer]
    width = base.spec.layers[layer].experts[0]
    assert plan.experts == (0, 1, 2, 3, 4)
    # For the bias of its output, if it has one.
    least = int(base.spec.has_bias(layer, DOWN))
    assert plan.shape.experts == (width, least, width, width, width)
    # Without the first one's row others are chosen instead, or have larger shares.
    ids = token_batch(variant, 0)
    name = f"{base.spec.family.layer_name(layer)}.experts"
    zeroed = Checkpoint.open(tmp_path / "base")
    write_gates(zeroed, tmp_path / "gates", **{name: closed(1)})
    outputs = [
        logits64(dense_model(open_masked(tmp_path / "base", gates), torch.float64), ids)
        for gates in (None, tmp_path / "gates")
    ]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 0.5, 1, 1, 1], "holds 0.5; an expert is open, 1, or closed, 0"),
        ([0, 0, 0, 0, 0], "closes every expert of its layer"),
        ([0, 1], "has 2 gates, the model has 5 there"),
    ],
)
def test_gates_that_no_router_can_follow(values: list[float], message: str, tmp_path: Path) -> None:
    base = write_base(ZOO["mixtral"][0], tmp_path / "base")
    write_gates(base, tmp_path / "gates", **{"model.layers.0.experts": np.array(values)})
    with pytest.raises(GatesError, match=message):
        open_masked(tmp_path / "base", tmp_path / "gates")


def test_an_unknown_gate_of_a_mixture_is_answered_with_every_kind_of_key(tmp_path: Path) -> None:
    """The experts of a layer, the units of one, of the shared one, and of layers without a mixture.

    Layer 1 is no mixture.
    """
    base = write_base(ZOO["qwen2_moe"][0], tmp_path / "base")
    write_gates(base, tmp_path / "gates", **{"model.layers.1.experts": closed(1)})
    keys = (
        *("0.experts", "0.mlp.experts.0.mlp_units", "0.mlp.shared_expert.mlp_units", "0.heads"),
        *("0.kv_groups", "1.mlp_units", "0.self_attn.q_proj.rows", "0.self_attn.q_proj.columns"),
    )
    expected = "expected a key like " + ", ".join(f"model.layers.{key}" for key in keys)
    with pytest.raises(GatesError, match=re.escape(f"no gate of this model; {expected}")):
        open_masked(tmp_path / "base", tmp_path / "gates")


def test_a_stock_model_has_as_many_experts_in_every_layer(tmp_path: Path) -> None:
    base = write_base(ZOO["mixtral"][0], tmp_path / "base")
    gates = {"model.layers.0.experts": closed(1), "model.layers.2.experts": closed(0, 1)}
    write_gates(base, tmp_path / "gates", **gates)
    masked = open_masked(tmp_path / "base", tmp_path / "gates")
    with pytest.raises(PlanError, match="layer 2 keeps 3 experts and layer 1 keeps 5"):
        make_plan(masked, Target(uniform=True))


@pytest.mark.parametrize("variant", ONE_BY_ONE[::2], ids=str)
def test_experts_of_other_tools_are_counted_by_the_tensors(
    variant: Variant, tmp_path: Path
) -> None:
    """A tool may leave uneven layers behind, and the dense numbers in config.json."""
    base = write_base(variant, tmp_path / "base")
    layers = mixture_layers(base)
    gates = {f"{base.spec.family.layer_name(layer)}.experts": closed(layer) for layer in layers}
    down = base.spec.family.expert_linear(layers[0], 3, DOWN)
    units = base.spec.layers[layers[0]].experts[0]
    gates[f"{down.rpartition('.')[0]}.mlp_units"] = (np.arange(units) % 3 > 0).astype(np.float32)
    write_gates(base, tmp_path / "gates", **gates)
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", tmp_path / "gates"))
    config = (tmp_path / "base" / "config.json").read_text()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(config)
    weights = load_file(tmp_path / "out" / WEIGHTS)
    save_file(weights, tmp_path / "foreign" / WEIGHTS, {"format": "pt"})
    ours, foreign = Checkpoint.open(tmp_path / "out"), Checkpoint.open(tmp_path / "foreign")
    assert foreign.spec == ours.spec
    assert foreign.layout is not None and "experts of each layer" in foreign.layout
    tokens = token_batch(variant, 0)[0].numpy()
    one, other = (TorchModel.converted(tmp_path / n).logits(tokens) for n in ("out", "foreign"))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    # A row of the router that was left behind.
    name = f"{router_name(base, layers[0])}.weight"
    weights[name] = np.concatenate([weights[name], weights[name][:1]])
    save_file(weights, tmp_path / "foreign" / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has 5 rows, one for each expert, .* is missing"):
        Checkpoint.open(tmp_path / "foreign")


def test_an_expert_keeps_its_own_type(tmp_path: Path) -> None:
    """Expert 1 becomes number 0, which was stored in halves."""
    base = write_base(ZOO["mixtral"][0], tmp_path / "base")
    stored = load_file(tmp_path / "base" / WEIGHTS)
    first = base.spec.family.expert_linear(0, 0, DOWN).rpartition(".")[0]
    stored = {k: v.astype(np.float16) if k.startswith(first) else v for k, v in stored.items()}
    save_file(stored, tmp_path / "base" / WEIGHTS, {"format": "pt"})
    base = Checkpoint.open(tmp_path / "base")
    write_gates(base, tmp_path / "gates", **{"model.layers.0.experts": closed(0)})
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", tmp_path / "gates"))
    old, new = (f"{base.spec.family.expert_linear(0, number, DOWN)}.weight" for number in (1, 0))
    found = load_file(tmp_path / "out" / WEIGHTS)[new]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored[old])


def test_a_pruned_mixture_is_pruned_again(tmp_path: Path) -> None:
    """Among its experts is one without units, before others that stay."""
    base = write_base(ZOO["qwen2_moe"][0], tmp_path / "base")
    expert = base.spec.family.expert_linear(0, 1, DOWN).rpartition(".")[0]
    write_gates(base, tmp_path / "gates", **{f"{expert}.mlp_units": np.zeros(16)})
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "once", tmp_path / "gates"))
    once = Checkpoint.open(tmp_path / "once")
    assert once.spec.layers[0].experts == (16, 0, 16, 16, 16)
    for number, gates in enumerate(((0,), (1, 3))):
        mask, out = tmp_path / f"mask{number}", tmp_path / f"twice{number}"
        write_gates(once, mask, **{"model.layers.0.experts": closed(*gates)})
        convert(ConvertOptions(str(tmp_path / "once"), out, mask))
        result = verify(VerifyOptions(str(tmp_path / "once"), str(out), mask, "torch"))
        assert result.passed, result.difference


@pytest.mark.parametrize("family", ["qwen2_moe", "glm4_moe", "gemma4_text"])
@pytest.mark.parametrize("dead", ["routed", "shared"])
def test_only_shared_or_only_routed_experts_stay(dead: str, family: str, tmp_path: Path) -> None:
    """No stock class holds either, though all layers are alike."""
    base = write_base(next(one for one in MIXTURES if one.family == family), tmp_path / "base")
    gates = {}
    for layer in mixture_layers(base):
        for part in base.spec.parts(layer, DOWN):
            if (part.expert == 5) == (dead == "shared"):
                units = part.units.stop - part.units.start
                gates[f"{part.module.rpartition('.')[0]}.mlp_units"] = np.zeros(units)
    write_gates(base, tmp_path / "gates", **gates)
    out = tmp_path / "out"
    convert(ConvertOptions(str(tmp_path / "base"), out, tmp_path / "gates", to=("hf", "onnx")))
    assert Checkpoint.open(out).config["model_type"] == "sgate"
    for engine in ("torch", "onnx"):
        result = verify(VerifyOptions(str(tmp_path / "base"), str(out), tmp_path / "gates", engine))
        assert result.passed, result.difference


def test_an_uneven_mixture_runs_in_plain_transformers(tmp_path: Path) -> None:
    """The routers' own loss, which a config may ask for, counts as many experts in every layer."""
    variant = ZOO["mixtral"][0]
    build(variant, 0, output_router_logits=True).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    write_gates(base, tmp_path / "gates", **{"model.layers.0.experts": closed(0, 1)})
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", tmp_path / "gates"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = token_batch(variant, 0)[:1]
    with torch.no_grad():
        found = model(tokens).logits[0].numpy()
    expected = TorchModel.converted(tmp_path / "out").logits(tokens[0].numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_tokens_after_a_close_choice_among_experts_are_doubtful(tmp_path: Path) -> None:
    base = write_base(ZOO["mixtral"][0], tmp_path / "base")
    model = TorchModel.masked_dense(open_masked(tmp_path / "base", None))
    tokens = token_batch(ZOO["mixtral"][0], 0)[0].numpy()
    model.logits(tokens)
    assert not model.doubtful(len(tokens)).any()
    # Experts with the same row tie where the last to be chosen is one of them.
    router = model.model.get_submodule("model.layers.0.mlp.gate")
    router.weight.data[1:3] = router.weight.data[0]
    chosen: list[torch.Tensor] = []
    router.register_forward_hook(lambda *hooked: chosen.append(hooked[2][0]))
    model.logits(tokens)
    best = -np.sort(-chosen[0].numpy(), axis=1)
    ties = best[:, 1] - best[:, 2] < 1e-6
    assert ties.any() and not ties.all() and base.spec.layers[0].top_k == 2
    expected = np.logical_or.accumulate(ties)
    np.testing.assert_array_equal(model.doubtful(len(tokens)), expected)
    assert model.doubtful(1).tolist() == [True]


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        for name in names:
            del tensors[name]

    return change


def cut(name: str, rows: int | None = None, columns: int | None = None) -> Any:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = np.ascontiguousarray(tensors[name][:rows, :columns])

    return change


ROUTER, EXPERT = "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.1"


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (cut(ROUTER, rows=4), {}, r"gate.weight has 4 rows, but there is .*experts\.4\.down_proj"),
        (
            cut(f"{EXPERT}.down_proj.weight", columns=9),
            {},
            r"has 9 columns and .*1\.gate_proj.* 16 r",
        ),
        (
            without("model.layers.0.mlp.shared_expert.down_proj.weight"),
            {},
            "layer 0 has a shared expert by config.json, and tensor .* is missing",
        ),
        (
            without(),
            {"mlp_only_layers": [0, 1]},
            "layer 0 is an MLP by mlp_only_layers .* a mixture",
        ),
        (without(), {"mlp_only_layers": None}, "layer 1 is a mixture by mlp_only_layers .* an MLP"),
        (without(), {"num_experts_per_tok": 9}, "num_experts_per_tok 9 of 5 experts"),
    ],
)
def test_what_contradicts_itself_is_named(
    change: Callable[[dict[str, Any]], None],
    fields: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    write_base(ZOO["qwen2_moe"][0], tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_a_stock_result_that_transformers_cannot_group_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eleven units of fp32 are no whole 16 bytes; its grouped products stop there."""
    base = write_base(ZOO["mixtral"][0], tmp_path / "base")
    sites = {site.key: site for site in coupled_sites(base.spec) if site.kind == "mlp_units"}
    write_gates(base, tmp_path / "gates", **{key: np.arange(32) < 11 for key in sites})
    for align, is_said in ((), True), (("--align", "8"), False):
        out = str(tmp_path / f"out{is_said}")
        arguments = [str(tmp_path / "base"), "--gates", str(tmp_path / "gates"), "--out", out]
        assert main(["convert", *arguments, *align]) == 0
        assert ("on whole 16 bytes: --align 8" in capsys.readouterr().out) == is_said
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert type(model).__name__ == "MixtralForCausalLM"
        if is_said:
            with pytest.raises(RuntimeError, match="16 bytes"):
                model(token_batch(ZOO["mixtral"][0], 0))
        else:
            model(token_batch(ZOO["mixtral"][0], 0))
