"""Conversion end to end: masked dense forward equals converted forward, for random gates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import sgate_serve.models  # noqa: F401
from converters.convert import ConvertOptions, convert, make_plan, open_masked
from converters.find_facts import model_facts
from converters.rules import find_dead
from sgate_serve.checkpoint import identity
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import TensorInfo
from sgate_serve.errors import CheckpointError, GatesError, PlanError
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import EXPERTS, coupled_sites
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import PLAN_FILE, Plan, Target
from sgate_serve.plan.figures import removed
from sgate_serve.plan.json_form import read_plan
from tests.small_llama import dense_llama, random_tokens, save

# fp32 sums in another order; a wrong slice is off by more than 1e-2.
TOLERANCE = 2e-5


def write_gates(base: Checkpoint, folder: Path, **values: Any) -> Path:
    arrays = {key.replace("__", "."): np.asarray(v, np.float32) for key, v in values.items()}
    family = base.spec.family.name
    gates = Gates("test", family, "coupled", base.fingerprint, arrays)
    replace(gates, base_digest=base.digest).write(folder)
    return folder


def random_gates(base: Checkpoint, seed: int, closed: float) -> dict[str, Any]:
    """Return coupled gates: a share is exactly 0, the others are 1 or fractions."""
    generator = np.random.default_rng(seed)
    values = {}
    for site in coupled_sites(base.spec):
        gates = generator.choice([1.0, 0.5, 0.25], site.num_gates)
        gates[generator.random(site.num_gates) < closed] = 0
        if site.kind == EXPERTS:
            # Experts are open or closed, and as many are closed in every layer.
            gates = np.ones(site.num_gates)
            gates[generator.permutation(site.num_gates)[: int(closed * site.num_gates)]] = 0
        values[site.key] = gates
    return values


def relative_difference(base: Path, gates: Path | None, out: Path) -> float:
    tokens = random_tokens(24)
    expected = TorchModel.masked_dense(open_masked(base, gates)).logits(tokens)
    found = TorchModel.converted(out).logits(tokens)
    return float(np.abs(expected - found).max() / np.abs(expected).max())


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**16),
    closed=st.sampled_from([0.2, 0.6, 0.95]),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 2), (3, 1)]),
    head_dim=st.sampled_from([8, 12]),
    tied=st.booleans(),
    bias=st.booleans(),
    align=st.sampled_from([1, 8]),
)
def test_masked_dense_equals_converted(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    closed: float,
    heads: tuple[int, int],
    head_dim: int,
    tied: bool,
    bias: bool,
    align: int,
) -> None:
    root = tmp_path_factory.mktemp("random")
    model = dense_llama(
        seed,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head_dim,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
    )
    base = save(model, root / "base")
    gates = write_gates(base, root / "gates", **random_gates(base, seed, closed))
    plan = convert(ConvertOptions(str(base.folder), root / "out", gates, target=Target(align)))
    assert relative_difference(base.folder, gates, root / "out") < TOLERANCE
    check_nothing_dead_is_left(root / "out", plan)


def check_nothing_dead_is_left(out: Path, plan: Plan) -> None:
    """The converted weights themselves must show no dead unit but those the plan revived."""
    found = find_dead(model_facts(open_masked(out, None)))
    for layer, removals in zip(plan.layers, found.layer_removals, strict=True):
        for axis in ("mlp_units", "heads", "kv_heads"):
            dead = {i for removal in removals if removal.axis == axis for i in removal.indices}
            assert len(dead) <= len(layer.revived(axis)), (layer.index, axis, dead)


def test_zeroed_checkpoint_loses_what_is_zero_without_gates(tmp_path: Path) -> None:
    model = dense_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 5:] = 0
        model.model.layers[1].self_attn.v_proj.weight[:16] = 0
        model.model.layers[2].mlp.up_proj.weight[:] = 0
    base = save(model, tmp_path / "base")
    plan = convert(ConvertOptions(str(base.folder), tmp_path / "out"))
    assert [len(layer.mlp_units) for layer in plan.layers] == [5, 30, 0]
    assert [layer.kv_heads for layer in plan.layers] == [(0, 1), (1,), (0, 1)]
    assert relative_difference(base.folder, None, tmp_path / "out") < TOLERANCE


def test_uniform_result_is_a_stock_model(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    closed = {f"model.layers.{i}.mlp_units": np.arange(30) >= 10 + i for i in range(3)}
    gates = write_gates(base, tmp_path / "gates", **closed)
    convert(ConvertOptions(str(base.folder), tmp_path / "uneven", gates))
    assert read_config(tmp_path / "uneven")["model_type"] == "sgate"
    convert(ConvertOptions(str(base.folder), tmp_path / "uniform", gates, target=Target(20)))
    config = read_config(tmp_path / "uniform")
    assert (config["model_type"], config["intermediate_size"]) == ("llama", 20)
    assert "sgate" not in config and "per_layer_config" not in config
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "uniform")).__name__ == (
        "LlamaForCausalLM"
    )
    assert relative_difference(base.folder, gates, tmp_path / "uniform") < TOLERANCE


def test_head_count_that_stock_configs_refuse_is_written_as_sgate(tmp_path: Path) -> None:
    model = dense_llama(hidden_size=40, num_attention_heads=4, num_key_value_heads=4)
    base = save(model, tmp_path / "base")
    closed = {f"model.layers.{i}.heads": [1, 0, 1, 1] for i in range(3)}
    gates = write_gates(base, tmp_path / "gates", **closed)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates))
    assert read_config(tmp_path / "out")["model_type"] == "sgate"
    assert AutoConfig.from_pretrained(tmp_path / "out").num_attention_heads == 3
    assert relative_difference(base.folder, gates, tmp_path / "out") < TOLERANCE


def test_deltas_replace_weights_and_add_biases(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    generator = np.random.default_rng(0)
    bias, norm = "model.layers.1.mlp.down_proj.bias", "model.norm.weight"
    up = "model.layers.0.mlp.up_proj.weight"
    deltas = {
        bias: generator.random(48, np.float32),
        norm: generator.random(48, np.float32),
        up: generator.random((30, 48), np.float32),
    }
    gates = Gates(
        "test",
        "llama",
        "coupled",
        base.fingerprint,
        {"model.layers.1.mlp_units": np.zeros(30, np.float32)},
    )
    gates.write(tmp_path / "gates", deltas)
    plan = convert(ConvertOptions(str(base.folder), tmp_path / "out", tmp_path / "gates"))
    # All that the block still writes is its new bias, which moves to the block before.
    assert plan.layers[1].mlp_units == ()
    assert plan.extra_biases == ("model.layers.1.self_attn.o_proj",)
    assert relative_difference(base.folder, tmp_path / "gates", tmp_path / "out") < TOLERANCE
    converted = TorchModel.converted(tmp_path / "out").model
    np.testing.assert_array_equal(converted.model.norm.weight.detach(), deltas[norm])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_precision_rounds_once(tmp_path: Path, precision: str, dtype: str) -> None:
    base = save(dense_llama(), tmp_path / "base")
    half = {"model.layers.0.mlp_units": np.r_[np.zeros(10), np.full(20, 0.3)]}
    gates = write_gates(base, tmp_path / "gates", **half)
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates, precision=precision))
    out = Checkpoint.open(tmp_path / "out")
    assert out.config["dtype"] == dtype
    name = "model.layers.0.mlp.down_proj.weight"
    expected = base.read(name)[:, 10:] * np.float32(0.3)
    stored = out.read(name)
    np.testing.assert_array_equal(stored, expected.astype(stored.dtype))


def test_pruning_twice_adds_up(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    first = write_gates(base, tmp_path / "g1", **{"model.layers.0.mlp_units": np.arange(30) < 20})
    convert(ConvertOptions(str(base.folder), tmp_path / "once", first))
    once = Checkpoint.open(tmp_path / "once")
    second = write_gates(once, tmp_path / "g2", **{"model.layers.1.kv_groups": [0, 1]})
    convert(ConvertOptions(str(once.folder), tmp_path / "twice", second))
    spec = Checkpoint.open(tmp_path / "twice").spec
    assert [layer.mlp_units for layer in spec.layers] == [20, 30, 30]
    assert [layer.num_kv_heads for layer in spec.layers] == [2, 1, 2]
    assert relative_difference(once.folder, second, tmp_path / "twice") < TOLERANCE


def test_same_input_same_bytes(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    gates = write_gates(base, tmp_path / "gates", **random_gates(base, 1, 0.4))
    for name in ("one", "two"):
        convert(ConvertOptions(str(base.folder), tmp_path / name, gates))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    other = save(dense_llama(seed=1), tmp_path / "other")
    gates = write_gates(other, tmp_path / "gates", **random_gates(other, 0, 0.3))
    out, source = tmp_path / "out", str(base.folder)
    with pytest.raises(GatesError, match="give the base that they were trained on"):
        convert(ConvertOptions(source, out, gates))
    with pytest.raises(PlanError, match="--to tflite: this release writes hf, onnx, gguf"):
        convert(ConvertOptions(source, out, to=("tflite",)))
    with pytest.raises(PlanError, match="--precision int2: this release writes fp32, fp16, bf16"):
        convert(ConvertOptions(source, out, precision="int2"))
    with pytest.raises(
        PlanError, match=r"int4 exists only for the ONNX graph and GGUF, .*; add --to hf,onnx"
    ):
        convert(ConvertOptions(source, out, precision="int4"))
    with pytest.raises(PlanError, match="--align 0"):
        convert(ConvertOptions(source, out, target=Target(0)))
    assert not out.exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = dense_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    base = save(model, tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.weight holds NaN or infinite"):
        convert(ConvertOptions(str(base.folder), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_plan_of_gates_reads_no_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(dense_llama(), tmp_path / "base")
    gates = write_gates(base, tmp_path / "gates", **random_gates(base, 2, 0.5))
    # Nor are all bytes hashed, which would take minutes with a large model.
    monkeypatch.setattr(identity, "span_digests", lambda wanted: pytest.fail("it was hashed"))
    masked = open_masked(base.folder, gates, whole_base=False)

    read = TensorInfo.read

    def read_vector(info: TensorInfo) -> Any:
        assert len(info.shape) == 1, f"{info.name} was read"
        return read(info)

    monkeypatch.setattr(TensorInfo, "read", read_vector)
    assert 0 < removed(make_plan(masked), masked.spec) < 1


def read_config(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return value


def test_folder_holds_the_plan_it_was_written_by(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    gates = write_gates(base, tmp_path / "gates", **random_gates(base, 3, 0.4))
    plan = convert(ConvertOptions(str(base.folder), tmp_path / "out", gates, to=("hf", "onnx")))
    assert read_plan(tmp_path / "out" / PLAN_FILE) == plan
    assert plan.base_digest == base.digest
    assert make_plan(open_masked(base.folder, gates)) == replace(plan, base_digest=None)
    assert (tmp_path / "out" / "onnx" / "model.onnx").exists()
    assert f"{removed(plan, base.spec):.1%}" in (tmp_path / "out" / "README.md").read_text()
