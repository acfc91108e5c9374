"""Layers of Gemma 4 that read the keys and values of an earlier layer, and inputs of their own."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.family import DOWN, OUTPUT, VALUE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import main
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.errors import CheckpointError, EngineError, PlanError, TrainingError
from sgate_serve.loaders.serving import load_slot_engine
from sgate_serve.plan import Plan, Target
from sgate_serve.training import TrainOptions, train
from tests.converters.exactness import Example, check, write_base
from tests.converters.test_mixtures import WEIGHTS
from tests.converters.zeroing import Weights, unwrite
from tests.families.zoo import ZOO, build
from tests.families.zoo_configs import GEMMA4_EXPERTS

(VARIANT,) = (one for one in ZOO["gemma4_text"] if one.name == "shared-keys-inputs")
(BIASED,) = (one for one in ZOO["gemma4_text"] if one.name == "biased-shared-keys")
# Layer 3 reads the keys and values of layer 2, two groups of two heads.
SOURCE, READER = 2, 3
WIDTH = 16
GROUP = slice(0, 2 * WIDTH)
Change = Callable[[Weights], None]


def unread(layers: Sequence[int], columns: slice) -> Change:
    """Let the output of some layers read nothing of heads."""

    def change(weights: Weights) -> None:
        for layer in layers:
            weights.matrix(layer, OUTPUT)[:, columns] = 0

    return change


def exact(change: Change, root: Path) -> Plan:
    """Convert a changed model; its outputs must be those of transformers."""
    return check(Example(VARIANT, change=change), root)


@pytest.mark.parametrize("layer", [SOURCE, READER])
def test_a_group_that_one_layer_reads_stays_in_all(layer: int, tmp_path: Path) -> None:
    plan = exact(unread([layer], GROUP), tmp_path)
    for index in (SOURCE, READER):
        assert plan.layers[index].kv_heads == (0, 1)
    # Its heads come back, reading it for nothing.
    assert {r.axis for r in plan.layers[layer].revivals} == {"heads"}


def test_a_group_that_no_layer_reads_goes_in_all(tmp_path: Path) -> None:
    plan = exact(unread([SOURCE, READER], GROUP), tmp_path)
    for index in (SOURCE, READER):
        assert (plan.layers[index].heads, plan.layers[index].kv_heads) == ((2, 3), (1,))
    assert plan.layers[0].kv_heads == (0, 1)


def test_heads_of_a_layer_go_alone(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for first in (0, 2):
            weights.matrix(READER, OUTPUT)[:, first * WIDTH : (first + 1) * WIDTH] = 0

    plan = exact(change, tmp_path)
    assert (plan.layers[READER].heads, plan.layers[READER].kv_heads) == ((1, 3), (0, 1))
    assert plan.layers[SOURCE].heads == (0, 1, 2, 3)


def test_a_reader_loses_its_block_and_leaves_the_keys(tmp_path: Path) -> None:
    plan = exact(unread([READER], slice(None)), tmp_path)
    assert plan.layers[READER].shape.skipped_blocks == ("attention",)
    assert plan.layers[SOURCE].kv_heads == (0, 1)


def test_a_source_without_heads_keeps_its_keys_for_the_readers(tmp_path: Path) -> None:
    plan = exact(unread([SOURCE], slice(None)), tmp_path)
    assert (plan.layers[SOURCE].heads, plan.layers[SOURCE].kv_heads) == ((0, 2), (0, 1))
    gone = exact(unread([SOURCE, READER], slice(None)), tmp_path)
    assert all(gone.layers[one].shape.skipped_blocks for one in (SOURCE, READER))


def test_values_that_only_a_reader_reads_stay(tmp_path: Path) -> None:
    plan = exact(unread([SOURCE], GROUP), tmp_path)
    assert plan.layers[SOURCE].value_dims == tuple(range(2 * WIDTH))

    def change(weights: Weights) -> None:
        weights.matrix(SOURCE, VALUE)[:3] = 0

    plan = exact(change, tmp_path)
    assert plan.layers[SOURCE].value_dims == tuple(range(3, 2 * WIDTH))


@pytest.mark.parametrize("layers", [[SOURCE], [READER], [SOURCE, READER]])
def test_a_layer_that_writes_a_bias_alone_keeps_a_head_for_each_kv_head(
    layers: list[int], tmp_path: Path
) -> None:
    plan = check(Example(BIASED, change=unread(layers, slice(None))), tmp_path)
    for index in (SOURCE, READER):
        assert plan.layers[index].kv_heads == (0, 1)
        assert plan.layers[index].heads == ((0, 2) if index in layers else (0, 1, 2, 3))


def test_a_dimension_that_only_inputs_write_stays(tmp_path: Path) -> None:
    depth = VARIANT.config["num_hidden_layers"]
    plan = exact(lambda weights: unwrite(weights, [1, 2], depth), tmp_path)
    assert plan.hidden is None


def test_the_doubled_mlp_is_even_in_a_stock_folder(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for layer in range(5):
            weights.matrix(layer, DOWN)[:, : 7 if layer < 3 else 21] = 0

    build(VARIANT, 0).save_pretrained(tmp_path / "base")
    assert [one.mlp_units for one in Checkpoint.open(tmp_path / "base").spec.layers] == (
        [30] * 3 + [60] * 2
    )
    uniform = Example(VARIANT, change=change, target=Target(uniform=True), index_price=None)
    plan = check(uniform, tmp_path / "uniform")
    assert [one.shape.mlp_units for one in plan.layers] == [23] * 3 + [46] * 2
    plan = exact(change, tmp_path / "uneven")
    assert [one.shape.mlp_units for one in plan.layers] == [23] * 3 + [39] * 2


def test_experts_beside_mlps_of_twice_the_width_have_a_stock_config(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for layer, num_closed in enumerate((7, 9, 8, 13, 20)):
            down = weights.matrix(layer, DOWN)
            # The MLP comes after the experts, of 16 units each.
            down[:, 5 * 16 : 5 * 16 + num_closed] = 0

    config = dict(VARIANT.config) | {
        key: GEMMA4_EXPERTS[key]
        for key in ("enable_moe_block", "moe_intermediate_size", "num_experts", "top_k_experts")
    }
    both = replace(VARIANT, config=config)
    uniform = Example(both, change=change, target=Target(uniform=True), index_price=None)
    plan = check(uniform, tmp_path)
    # The widest is half of 47, of the fourth layer.
    assert [one.shape.shared_units for one in plan.layers] == [24] * 3 + [48] * 2


def test_keys_that_nothing_reads_are_left_out(tmp_path: Path) -> None:
    """As in published folders, and as transformers leaves them out."""
    build(VARIANT, 0).save_pretrained(tmp_path)
    stored, name = load_file(tmp_path / WEIGHTS), f"model.layers.{READER}.self_attn.k_proj.weight"
    stored[name] = np.zeros((2 * WIDTH, 48), np.float32)
    save_file(stored, tmp_path / WEIGHTS, {"format": "pt"})
    assert name not in Checkpoint.open(tmp_path).spec.tensor_shapes()


def test_a_config_whose_layers_read_other_heads_is_refused(tmp_path: Path) -> None:
    write_base(Example(VARIANT, change=unread([SOURCE, READER], GROUP)), tmp_path / "base")
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["per_layer_config"][f"{READER}"]["num_key_value_heads"] = 2
    message = "layer 3 reads 2 KV heads of an earlier layer, which has 1; convert the base"
    with pytest.raises(CheckpointError, match=message):
        ModelSpec.from_config(config, "config.json")


def test_a_plan_of_such_layers_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_base(Example(VARIANT, change=unread([SOURCE], slice(None))), tmp_path)
    assert main(["plan", str(tmp_path), "--explain"]) == 0
    assert main(["inspect", str(tmp_path)]) == 0
    assert "each KV head keeps 1 query head" in capsys.readouterr().out


def test_what_does_not_run_such_layers_says_so(tmp_path: Path) -> None:
    for variant, words in ((VARIANT, "num_kv_shared_layers"), (None, "hidden_size_per_layer_in")):
        overrides = {} if variant else {"num_kv_shared_layers": 0}
        folder = tmp_path / words
        build(VARIANT, 0, **overrides).save_pretrained(folder)
        options = ConvertOptions(str(folder), tmp_path / f"{words}-out", to=("hf", "onnx"))
        message = f"^{re.escape(str(folder))} has .*{words}.*, and ONNX graphs have none yet"
        with pytest.raises(EngineError, match=message):
            convert(options)
        engine = load_slot_engine("auto", Checkpoint.open(folder), SlotOptions(1, 8, threads=1))
        assert engine.name == "torch"
        engine.close()
    shared = str(tmp_path / "num_kv_shared_layers")
    with pytest.raises(PlanError, match=re.escape("no engine with shards runs uneven ones")):
        convert(ConvertOptions(shared, tmp_path / "two", target=Target(tensor_parallel=2)))
    text = tmp_path / "text.txt"
    text.write_text("text")
    with pytest.raises(TrainingError, match="has no gates for such groups yet"):
        train(TrainOptions(base=shared, data=text, out=tmp_path / "gates", seq_len=16))
