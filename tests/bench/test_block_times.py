"""The times of blocks: what is measured, how it is shared out, and when it is reused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench import block_times, known_block_times
from sgate_serve.bench.block_times import (
    HALF,
    measure_block_times,
    phase_times,
    seconds_per_run,
    stacks_of,
    widths_of,
)
from sgate_serve.bench.comparison import DENSE
from sgate_serve.bench.known_block_times import known_block_times as known
from sgate_serve.bench.known_block_times import precision_on, times_file
from sgate_serve.bench.narrow_models import Stack, write_narrow
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import hardware
from sgate_serve.errors import EngineError
from sgate_serve.onnx_format.precision import PRECISIONS
from sgate_serve.plan.block_times import BlockTimes
from tests.families.zoo import ON_ENGINES, ZOO, Variant, build
from tests.plan.test_block_times import TIMES
from tests.small_llama import dense_llama, save
from tests.training.masks.test_coupled_selection import spec_of

INT8 = PRECISIONS["int8"]


def true_seconds(stack: Stack) -> float:
    """Time a stack by a law that is convex in the units and concave in the groups."""
    shape = stack.shape
    block = 0.01 * shape.num_kv_heads**0.5 + 1e-6 * shape.mlp_units**2
    return float(0.25 + stack.num_layers * block)


@pytest.mark.parametrize("largest", [2**29, 2**17])
def test_tables_of_additive_times_predict_every_measured_stack(
    monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(block_times, "LARGEST_STACK", largest)
    spec = spec_of(8, 4, layers=8)
    stacks = stacks_of(spec, INT8)
    assert (HALF in stacks) == (largest < 2**29)
    if HALF in stacks:
        assert stacks[DENSE].num_layers < 8
        assert stacks[HALF].num_layers == stacks[DENSE].num_layers // 2
    seconds = {name: true_seconds(stack) for name, stack in stacks.items()}
    times = phase_times(spec, stacks, seconds)
    for name, stack in stacks.items():
        if name != HALF:
            whole = replace(spec, layers=(stack.shape,) * 8)
            expected = true_seconds(Stack(stack.shape, 8))
            assert times.seconds(whole) == pytest.approx(expected), name


def test_one_stack_differs_from_the_dense_one_in_one_kind_of_block() -> None:
    dense = spec_of(8, 4).layers[0]
    stacks = stacks_of(spec_of(8, 4), INT8)
    assert {name: (s.shape.num_kv_heads, s.shape.mlp_units) for name, s in stacks.items()} == {
        DENSE: (4, 96),
        **{f"attention {groups}": (groups, 96) for groups in (1, 2, 3)},
        **{f"mlp {units}": (4, units) for units in (1, 23, 47, 71)},
    }
    assert all(s.shape.queries_per_kv == dense.queries_per_kv for s in stacks.values())


@pytest.mark.parametrize(
    ("dense", "expected"),
    [(1, []), (2, [1]), (3, [1, 2]), (8, [1, 2, 4, 6]), (1536, [1, 383, 767, 1151])],
)
def test_widths_are_those_that_masks_leave(dense: int, expected: list[int]) -> None:
    assert widths_of(dense) == expected


def test_the_run_that_was_disturbed_least_counts() -> None:
    times = {DENSE: [1.0, 0.8, 5.0, 0.9], "mlp 1": [0.4, 0.2, 0.2, 9.0]}
    assert seconds_per_run(times, 4) == pytest.approx({DENSE: 0.2, "mlp 1": 0.05})


def test_noise_leaves_time_outside_the_blocks() -> None:
    spec = spec_of(8, 4)
    stacks = stacks_of(spec, INT8)
    times = phase_times(spec, stacks, {name: 1.0 if name == DENSE else 0.1 for name in stacks})
    assert times.other == pytest.approx(0.01)


# Blocks of mixtures are not timed, nor recurrent ones, nor those of layers with two kinds of heads.
TIMED = [
    variant
    for variant in ON_ENGINES
    if FAMILIES[variant.family].mixture is None
    and FAMILIES[variant.family].recurrence is None
    and not FAMILIES[variant.family].has_heads_by_type
]


@pytest.mark.parametrize("variant", TIMED, ids=str)
def test_narrow_models_of_every_family_are_checkpoints(variant: Variant, tmp_path: Path) -> None:
    build(variant, seed=0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    dense = base.spec.layers[0]
    shape = replace(dense, num_kv_heads=1, num_heads=dense.queries_per_kv, mlp_units=7)
    narrow = write_narrow(base, Stack(shape, 1), tmp_path / "narrow").spec
    assert narrow.layers == (shape,)
    assert (narrow.family, narrow.task) == (base.spec.family, base.spec.task)
    assert narrow.windows == base.spec.windows[:1]
    same = ("hidden_size", "vocab_size", "activation", "tied_head")
    assert all(getattr(narrow, name) == getattr(base.spec, name) for name in same)


@pytest.mark.parametrize(
    ("variant", "engine", "precision", "phases"),
    [
        (ZOO["llama"][0], "onnx", "int8", ("decode", "prefill")),
        (ZOO["llama"][0], "onnx", "int4", ("decode", "prefill")),
        (ZOO["qwen2"][1], "torch", "fp32", ("decode", "prefill")),
        (ZOO["bert"][1], "onnx", "int8", ("encode",)),
    ],
    ids=str,
)
def test_real_models_are_timed(
    variant: Variant,
    engine: str,
    precision: str,
    phases: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_times, "ROUNDS", dict.fromkeys(block_times.ROUNDS, 1))
    build(variant, seed=0).save_pretrained(tmp_path / "base")
    model = Checkpoint.open(tmp_path / "base")
    wanted = precision_on(engine, precision, is_encoder=model.spec.is_encoder)
    times = measure_block_times(model, engine, wanted)
    assert (times.engine, times.precision, (*times.phases,)) == (engine, precision, phases)
    # It passes the checks of a record, as it is reused.
    assert BlockTimes.from_json(json.loads(json.dumps(times.to_json()))) == times
    for phase in times.phases.values():
        assert phase.seconds(model.spec) >= phase.other > 0


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    # As wide as the layers of TIMES.
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 97}
    return save(dense_llama(**sizes), tmp_path / "base")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace measuring, and list what is measured."""
    calls: list[str] = []

    def measure(model: Checkpoint, engine: str, precision: Any) -> BlockTimes:
        calls.append(f"{engine} {precision.name}")
        return TIMES

    monkeypatch.setattr(known_block_times, "measure_block_times", measure)
    return calls


def test_times_are_measured_once(
    base: Checkpoint, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert known(base, "onnx", "int8") == known(base, "onnx", "int8") == TIMES
    assert measured == ["onnx int8"]
    assert "block times, as measured" in (err := capsys.readouterr().err)
    assert "days ago on a CPU" in err
    known(base, "onnx", "int4")
    assert measured == ["onnx int8", "onnx int4"]


def edited(**fields: Any) -> str:
    return json.dumps(TIMES.to_json() | fields)


STEP = TIMES.to_json()["phases"]["decode"]
DAMAGED = [
    *("{", "[]", "null", '{"phases": {}}', "\xff"),
    edited(phases={"decode": STEP}),
    edited(measured_at="2026-01-02T03:04:05"),
    edited().replace("12.0", "Infinity"),
    # Of a model with other widths.
    edited().replace("97", "96"),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cache_is_measured_anew(
    base: Checkpoint, measured: list[str], content: str
) -> None:
    known(base, "onnx", "int8")
    file = times_file(base.spec, "onnx", precision_on("onnx", "int8", is_encoder=False))
    file.write_text(content, encoding="latin-1")
    assert known(base, "onnx", "int8") == TIMES
    assert measured == ["onnx int8"] * 2
    assert BlockTimes.from_json(json.loads(file.read_text())) == TIMES


def test_int8_is_timed_in_the_form_that_this_cpu_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, in_rows in ((["avx512_vnni"], True), (["avx2"], False)):
        monkeypatch.setattr("sgate_serve.bench.known_block_times.cpu_flags", lambda own=flags: own)
        assert precision_on("onnx", "int8", is_encoder=False).in_rows == in_rows
        assert not precision_on("onnx", "int4", is_encoder=False).in_rows


def test_the_key_is_the_machine_the_engine_the_precision_and_the_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec: ModelSpec = spec_of(8, 4)
    files = {
        times_file(spec, "onnx", INT8),
        times_file(spec, "torch", INT8),
        times_file(spec, "onnx", PRECISIONS["int4"]),
        times_file(spec_of(8, 2), "onnx", INT8),
        times_file(spec_of(8, 4, layers=4), "onnx", INT8),
        times_file(spec_of(8, 4, mlp_units=95), "onnx", INT8),
        times_file(replace(spec, windows=(4,) * 3), "onnx", INT8),
    }
    assert len(files) == 7
    assert times_file(spec_of(8, 4), "onnx", INT8) in files
    machine = hardware()
    for change in ({"cpu": "another"}, {"cpu_flags": ["amx"]}, {"cpus": machine["cpus"] + 1}):
        monkeypatch.setattr(known_block_times, "hardware", lambda own=change: machine | own)
        files.add(times_file(spec, "onnx", INT8))
    assert len(files) == 10


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("onxx", "int8", "unknown engine 'onxx'.*did you mean onnx"),
        ("onnx", "int9", "precision 'int9': ONNX graphs are fp32, fp16, int8, int4"),
        # Times are those of one precision.
        ("onnx", "auto", "precision 'auto': ONNX graphs are fp32, fp16, int8, int4"),
        ("torch", "int8", "engine torch computes in fp32; int8 is for onnx"),
    ],
)
def test_what_cannot_be_timed_is_refused(
    base: Checkpoint, engine: str, precision: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        known(base, engine, precision)


def test_uneven_layers_are_refused(base: Checkpoint) -> None:
    first, *others = base.spec.layers
    uneven = replace(base.spec, layers=(replace(first, mlp_units=3), *others))
    with pytest.raises(EngineError, match="base: its layers differ in width, so there is no table"):
        known(replace(base, spec=uneven), "onnx", "int8")
