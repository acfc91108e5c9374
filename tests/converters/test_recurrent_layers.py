"""Rule 14 and its counterexamples, output gates, and what is refused where layers are recurrent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgate_serve.architecture.family import (
    DECAY,
    KEY,
    OUTPUT,
    OUTPUT_GATE,
    QUERY,
    RENEWAL,
    VALUE,
)
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, TrainingError
from sgate_serve.plan import Plan
from sgate_serve.training import TrainOptions, train
from tests.converters.exactness import Example, check
from tests.converters.zeroing import Weights
from tests.families.config_judge import Config, config_of
from tests.families.zoo import ZOO, Variant, build

TIED, BIASED, *_ = ZOO["qwen3_5_text"]
WITH_EXPERTS = ZOO["qwen3_5_moe_text"][0]
# In TIED: four values of 8 dimensions for each of two queries and keys of 10, in layers 0 and 2.
EVERY_HEAD, EVERY_KEY_HEAD = tuple(range(8)), (0, 1)


def checked(
    tmp_path: Path, change: Callable[[Weights], None], variant: Variant = TIED, **config: Any
) -> Plan:
    own = Variant(variant.family, variant.name, variant.task, dict(variant.config) | config)
    return check(Example(own, change=change), tmp_path)


@pytest.mark.parametrize("variant", [TIED, ZOO["qwen3_next"][0]], ids=str)
@pytest.mark.parametrize("role", [QUERY, KEY])
def test_heads_whose_queries_or_keys_are_zero_are_dead(
    role: str, variant: Variant, tmp_path: Path
) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, role)[:10] = 0

    layer = checked(tmp_path, change, variant).layers[0]
    assert (layer.heads, layer.kv_heads) == ((4, 5, 6, 7), (1,))


@pytest.mark.parametrize("role", [QUERY, KEY, VALUE])
def test_they_live_if_the_activation_of_zero_is_not_zero(role: str, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, role)[:] = 0

    layer = checked(tmp_path, change, hidden_act="sigmoid").layers[0]
    assert (layer.heads, layer.kv_heads) == (EVERY_HEAD, EVERY_KEY_HEAD)


def test_a_head_is_dead_if_each_dimension_is_for_a_reason_of_its_own(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for start in (0, 4 * 8):
            weights.matrix(0, VALUE)[start : start + 2] = 0
            weights.matrix(0, OUTPUT_GATE)[start + 2 : start + 5] = 0
            weights.matrix(0, OUTPUT)[:, start + 5 : start + 8] = 0

    layer = checked(tmp_path, change).layers[0]
    assert (layer.heads, layer.kv_heads) == ((1, 2, 3, 5, 6, 7), EVERY_KEY_HEAD)


def test_single_dimensions_stay_for_the_norm_counts_them(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, VALUE)[:7] = 0
        weights.matrix(0, OUTPUT)[:, 8:15] = 0

    assert checked(tmp_path, change).layers[0].heads == EVERY_HEAD


@pytest.mark.parametrize("role", [RENEWAL, DECAY])
def test_a_head_that_renews_or_keeps_by_half_is_not_dead(role: str, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, role)[:] = 0

    assert checked(tmp_path, change).layers[0].heads == EVERY_HEAD


def test_a_recurrent_block_that_writes_nothing_goes_with_all_its_tensors(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:] = 0

    layer = checked(tmp_path, change).layers[0]
    assert layer.skipped_blocks == ("attention",)


def test_heads_behind_an_output_gate_of_zeros_write_half_of_what_they_read(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(1, OUTPUT_GATE)[:] = 0

    assert checked(tmp_path, change).layers[1].heads == (0, 1, 2, 3)


def test_heads_with_output_gates_do_not_merge(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(1, QUERY)[:] = 0

    plan = checked(tmp_path, change)
    assert plan.merges == () and plan.layers[1].heads == (0, 1, 2, 3)


def test_a_constant_behind_an_output_gate_is_none(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(1, VALUE)[:] = 0

    plan = checked(tmp_path, change, BIASED)
    assert plan.folds == () and len(plan.layers[1].value_dims) == 32


def test_tensors_that_predict_further_tokens_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(TIED, 0).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    extra = {"mtp.fc.weight": torch.zeros(4, 4)}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    assert "mtp.fc.weight" in Checkpoint.open(tmp_path).check()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_attention_interval": 9}, "no layer has full_attention, and the cache of transf"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers of 2"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types names 'sliding_attention'; this release knows full_attention and linear",
        ),
        ({"linear_num_value_heads": 3}, "layer 0 has 3 value heads, not a multiple of its 2 key"),
        (
            {"model_type": "of_images", "text_config": config_of("qwen3_5_text")},
            "model_type 'of_images' is not supported; its text part is of family qwen3_5_text: sa",
        ),
    ],
)
def test_configs_are_refused_by_name(changes: Config, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        ModelSpec.from_config(config_of("qwen3_5_text", **changes), "config.json")


@pytest.mark.parametrize("variant", [TIED, WITH_EXPERTS], ids=str)
def test_sizes_of_single_layers_are_not_read(variant: Variant, tmp_path: Path) -> None:
    model = build(variant, 0)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    text = file.read_text().replace("{", '{"layer_inter_size": [30, 20, 30],', 1)
    file.write_text(text)
    message = f"layer_inter_size with family {variant.family}: sizes"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": "row-col"}, "--gates row-col: .*base has recurrent layers, .*; use --gates c"),
        ({"target_speedup": 1.3}, "--target-speedup: .*base has recurrent layers, .*; give --ta"),
    ],
)
def test_runs_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    build(TIED, 0).save_pretrained(tmp_path / "base")
    (tmp_path / "text.txt").write_text("a text")
    options = TrainOptions(
        base=str(tmp_path / "base"),
        data=tmp_path / "text.txt",
        out=tmp_path / "gates",
        steps=2,
        seq_len=16,
        **changes,
    )
    with pytest.raises(TrainingError, match=message):
        train(options)
