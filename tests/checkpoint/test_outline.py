"""Outlines of models of any family: as transformers writes them, and as tools break them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sgate_serve.checkpoint.outline.config import AnyConfig
from sgate_serve.checkpoint.outline.faults import gaps, ranges
from sgate_serve.checkpoint.outline.outline import Outline
from sgate_serve.reports.outlines import outline_lines
from tests.checkpoint.outline_models import (
    BLOCK,
    EXPERTS,
    HIDDEN,
    LAYERS,
    UNITS,
    Change,
    add,
    both,
    changed,
    drop,
    keep,
    say,
    write,
)

# model_type → its mixtures.
MODELS: Mapping[str, int] = {
    **dict.fromkeys(("mixtral", "olmoe", "phimoe", "minimax", "hunyuan_v1_moe"), LAYERS),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "gpt_oss", "granitemoe", "qwen3_next"), LAYERS),
    "qwen3_5_moe_text": LAYERS,
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe"), LAYERS - 1),
    **dict.fromkeys(("dots1", "afmoe"), LAYERS - 1),
    "jamba": LAYERS // 2,
    "nemotron_h": 1,
    **dict.fromkeys(("olmo2", "olmo3", "nemotron", "exaone4", "cohere2", "qwen3_5_text"), 0),
}


@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_what_transformers_writes_agrees_with_itself(model_type: str, tmp_path: Path) -> None:
    outline = Outline.of(write(model_type, tmp_path))
    assert outline.faults == ()
    assert sorted(outline.stack) == [*range(LAYERS)]
    assert [mixture.size for mixture in outline.mixtures.values()] == [EXPERTS] * MODELS[model_type]
    assert all(mixture.router_rows == EXPERTS for mixture in outline.mixtures.values())


FAULTS: Mapping[str, tuple[Change, str]] = {
    "router": (
        keep(6, router=False),
        "model.layers.1.mlp (and 2 more): its router has 8 rows for 6 experts",
    ),
    "bias": (keep(6, bias=False), "e_score_correction_bias has 8 values for 6 experts"),
    "config": (keep(6, config=False), "it has 6 experts, but config.json says n_routed_experts 8"),
    "hole": (
        drop(f"{BLOCK.format(2)}.experts.3."),
        "model.layers.2.mlp: of 8 experts there are no tensors of 3",
    ),
    "layer": (drop("model.layers.2."), "it says 4 layers, but there are no tensors of layer 2"),
    "layers": (say(num_hidden_layers=2, num_nextn_predict_layers=0), "but files hold layer 2 to 3"),
    "units": (
        add(f"{BLOCK.format(1)}.experts.0.up_proj.weight", 12, HIDDEN),
        "model.layers.1.mlp: its experts have 12 to 16 units",
    ),
    "all units": (say(moe_intermediate_size=12), "16 units, but config.json says"),
    "vocabulary": (say(vocab_size=60), "embed_tokens.weight: it has 64 rows"),
    "head": (drop("lm_head."), "tie_word_embeddings is false, but no"),
}
# What transformers reads without complaint, or does not build at all.
MORE_FAULTS: Mapping[str, tuple[Change, str]] = {
    "tie": (say(tie_word_embeddings=True), "but lm_head.weight is another table"),
    "choice": (both(keep(1), say(n_group=1)), "but a layer has 1 experts"),
    "groups": (say(n_group=3), "n_group is 3, which does not divide 8 experts"),
    "kept groups": (say(topk_group=3), "topk_group is 3, more than n_group, 2"),
    "group": (say(n_group=8), "leaves 1 of 8 experts, fewer than num_exp"),
    "array": (say(layer_types=["full_attention"] * 6), "layer_types has 6 entries for 4 layers"),
    "pattern": (say(hybrid_override_pattern="M*M"), "hybrid_override_pattern has 3 entries for 4"),
    "numbers": (say(mlp_only_layers=[0, 5, 6]), "names layer 5 to 6, but there are 4"),
    "further head": (
        add("model.layers.4.shared_head.head.weight", 60, HIDDEN),
        "model.layers.4.shared_head.head.weight: it has 60 rows for 64 tokens",
    ),
    "joint": (add("model.layers.4.eh_proj.weight", HIDDEN, HIDDEN), "it is [32, 32], not [32, 64]"),
    "further layers": (
        both(say(num_nextn_predict_layers=2), add("model.layers.4.enorm.weight", HIDDEN)),
        "it says 2 layers that predict further tokens, but files hold 1",
    ),
    "further experts": (
        both(
            keep(6),
            add("model.layers.4.mlp.experts.7.up_proj.weight", UNITS, HIDDEN),
            add("model.layers.4.mlp.gate.weight", EXPERTS, HIDDEN),
        ),
        "model.layers.4.mlp: it has 8 experts, but config.json says n_routed_experts 6",
    ),
}


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("glm4_moe", tmp_path_factory.mktemp("glm"))


@pytest.mark.parametrize("kind", [*FAULTS, *MORE_FAULTS])
def test_a_fault_is_named(kind: str, glm: Path, tmp_path: Path) -> None:
    change, line = {**FAULTS, **MORE_FAULTS}[kind]
    faults = Outline.of(changed(glm, tmp_path, change)).faults
    assert [fault for fault in faults if line in fault], faults


@pytest.mark.parametrize("kind", FAULTS)
def test_transformers_stumbles_over_the_same_faults(kind: str, glm: Path, tmp_path: Path) -> None:
    assert not stumbles(glm)
    assert stumbles(changed(glm, tmp_path, FAULTS[kind][0]))


def stumbles(folder: Path) -> bool:
    try:
        _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    except (RuntimeError, ValueError, IndexError):
        return True
    return any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_headers_of_fp8_weights_are_read(glm: Path, tmp_path: Path) -> None:
    def change(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.ones(1, 1)

    outline = Outline.of(changed(glm, tmp_path, change))
    assert outline.faults == () and len(outline.mixtures) == LAYERS - 1


@pytest.mark.parametrize("count", [2, 6])
def test_a_uniform_smaller_mixture_has_no_fault(count: int, glm: Path, tmp_path: Path) -> None:
    """What REAP writes."""
    folder = changed(glm, tmp_path, both(keep(count), say(n_group=1)))
    assert Outline.of(folder).faults == ()
    assert not stumbles(folder)


def test_puzzles_blocks_are_compared_with_the_tensors(tmp_path: Path) -> None:
    llama = write("llama", tmp_path / "llama")
    heads, units = {"no_op": False, "n_heads_in_group": 2}, {"intermediate_size": 48}
    whole = {"attention": heads, "ffn": units}
    narrow = {**whole, "ffn": {"intermediate_size": 40}}
    nothing = {"no_op": True}
    blocks = [
        whole,
        {"attention": nothing, "ffn": units},
        whole,
        {"attention": nothing, "ffn": nothing},
    ]
    right = both(drop("model.layers.1.self_attn."), drop("model.layers.3."))
    for name, change, faults in (
        ("right", both(say(block_configs=blocks), right), ()),
        (
            "attention",
            both(say(block_configs=blocks), drop("model.layers.3.")),
            ("layer 1: block_configs gives it no attention, but files hold model",),
        ),
        (
            "units",
            both(say(block_configs=[narrow, *blocks[1:]]), right),
            ("layer 0: block_configs says intermediate_size 40, but model",),
        ),
        (
            "none",
            both(say(block_configs=[whole] * 4), right),
            ("gives it attention, but", "no tensors of layer 3", "gives it ffn, but"),
        ),
        (
            "length",
            both(say(block_configs=blocks[:3]), right),
            ("block_configs has 3 entries", "no tensors of layer 3"),
        ),
    ):
        (tmp_path / name).mkdir()
        found = Outline.of(changed(llama, tmp_path / name, change)).faults
        assert len(found) == len(faults)
        assert all(any(part in fault for fault in found) for part in faults), found


def test_numbers_are_written_as_ranges() -> None:
    assert ranges({7, 1, 2, 3, 9, 10}) == "1 to 3, 7, 9 to 10"
    assert ranges([]) == gaps([0, 1], 2) == ""
    assert gaps([1, 2, 4, 99], 10**12) == f"0, 3, 5 to 98, 100 to {10**12 - 1}"
    assert gaps(range(1, 99, 2), 90) == "0, 2, 4, 6, 8, 10, 12, 14, others"


# Fields of every kind that a config may have by mistake, and tensors of no use.
ODD: list[Any] = [
    ["llama"],
    [{"ffn": {"intermediate_size": 3}}] * 4,
    "x",
    "",
    [],
    [None],
    {},
    {"a": 1},
    -1,
    0,
    1.5,
    2**39,
    2**70,
    True,
    None,
]
NAMES = (
    *("num_hidden_layers", "text_config", "layer_types", "architectures", "block_configs"),
    *("vocab_size", "tie_word_embeddings", "n_group", "topk_group", "num_experts_per_tok"),
    *("n_routed_experts", "moe_intermediate_size", "mlp_only_layers", "model_type"),
    *("num_nextn_predict_layers", "zero_expert_num", "is_encoder_decoder"),
)


@pytest.mark.parametrize("name", NAMES)
def test_odd_configs_are_read(name: str, glm: Path) -> None:
    outline = Outline.of(glm)
    for value in ODD:
        config = AnyConfig.of({**outline.config.values, name: value})
        other = Outline(glm, config, outline.tensors)
        assert all(isinstance(line, str) and len(line) < 300 for line in other.faults)
        json.dumps(other.to_json())


def test_odd_tensors_are_read(glm: Path) -> None:
    outline = Outline.of(glm)
    whole = next(iter(outline.tensors.values()))
    names = [
        *(
            "model.layers.99999999999999999999.x",
            "model.layers.1.mlp.experts.9999999999.up_proj.weight",
        ),
        *("model.layers.2.mlp.experts.up_proj", "model.layers.2.mlp.gate.weight", "lm_head.weight"),
        *(
            "model.embed_tokens.weight",
            "x",
            ".",
            ".experts.",
            "a.experts.0.w1.weight",
            "h.0.",
            "eh_proj.weight",
        ),
    ]
    for shape in ((), (0,), (0, 0), (2**30,), (2**39, 1, 1)):
        tensors = {name: replace(whole, name=name, shape=shape) for name in names}
        for merged in (tensors, {**outline.tensors, **tensors}):
            other = Outline(glm, outline.config, merged)
            assert all(len(line) < 400 for line in other.faults)
            list(outline_lines(other))
    empty = Outline(glm, outline.config, {})
    assert empty.faults[0] == "config.json: it says 4 layers, but no tensor is of a numbered layer"
    strange = Outline(glm, AnyConfig.of({"model_type": "x\x1b[31m"}), {})
    assert "\x1b" not in "".join(outline_lines(strange))
