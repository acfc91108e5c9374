"""Training for a speed: the options that do not fit, and runs from table to report."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.bench import block_times, known_block_times
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.plan.block_times import DECODE, ENCODE, PREFILL, BlockTimes, PhaseTimes, WidthTimes
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.masks.removal_target import compile_gates
from sgate_serve.training.option_checks import check_options
from tests.commands.running import run
from tests.training.small_run import small_run

LINEAR = PhaseTimes(
    1.0,
    {
        "attention": WidthTimes((1, 2), (0.0, 0.5)),
        "mlp": WidthTimes((1, 64), (0.0, 2.0)),
    },
)
# Units alone cannot reach 1.3.
ATTENTION_BOUND = replace(LINEAR, blocks={**LINEAR.blocks, "mlp": WidthTimes((1, 64), (0.0, 0.2))})


def fixed_times(engine: str = "onnx", precision: str = "int8") -> BlockTimes:
    phases = {DECODE: LINEAR, PREFILL: ATTENTION_BOUND, ENCODE: LINEAR}
    return BlockTimes(engine, precision, "a CPU, 2 CPUs", "2026-01-02T03:04:05+00:00", phases)


def timer(model: Checkpoint, engine: str, precision: str) -> BlockTimes:
    return fixed_times(engine, precision)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    return small_run(tmp_path, target_speedup=1.3, steps=4, no_control=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0.3}, r"--target 0\.3 and --target-speedup 1\.3 are two goals: drop one"),
        ({"target_speedup": 1.0}, "--target-speedup 1: give how many times as fast .* above 1"),
        ({"target_speedup": 0.8}, r"--target-speedup 0\.8: give how many times"),
        ({"target_phase": "train"}, "--target-phase train: this release supports decode, prefill"),
        ({"gates": "row-col"}, "--target-speedup weighs seconds .* coupled gates: use --method"),
        ({"balance": "even"}, "--target-speedup weighs seconds .* --balance joint, or give --t"),
        ({"method": "wanda"}, "--target-speedup weighs seconds"),
        ({"method": "dense", "no_control": False}, "--target-speedup weighs seconds"),
        ({"mask": Path("m")}, "--target-speedup has no effect on a given mask: drop it, or --mask"),
        (
            {"task": "classification", "target_phase": "mix"},
            "--target-phase mix is for --task causal-lm: drop it, as a classifier has one phase",
        ),
        (
            {"target_speedup": None, "target_engine": "torch"},
            "--target-engine is for --target-speedup: add it, or drop --target-engine",
        ),
        ({"target_speedup": None, "target_precision": "int4"}, "--target-precision is for --targ"),
        ({"target_speedup": None, "target_phase": "mix"}, "--target-phase is for --target-speed"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: TrainOptions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        check_options(replace(options, **changes))


@pytest.mark.parametrize("method", ["fisher", "gates"])
def test_a_run_ends_at_the_predicted_speed(options: TrainOptions, method: str) -> None:
    result = train(replace(options, method=method), timer)
    speed = result.metrics["speed"]
    assert speed["predicted_speedup"] == pytest.approx(1.3, abs=0.02)
    assert {key: speed[key] for key in ("phase", "engine", "precision", "target_speedup")} == {
        "phase": "decode",
        "engine": "onnx",
        "precision": "int8",
        "target_speedup": 1.3,
    }
    assert json.loads((options.out / "metrics.json").read_text())["speed"] == speed
    spec = Checkpoint.open(options.base).spec
    plan = compile_gates(spec, Gates.read(options.out))
    units = sum(len(layer.mlp_units) for layer in plan.layers)
    groups = sum(len(layer.kv_heads) for layer in plan.layers)
    layers = len(spec.layers)
    seconds = 1 + (groups - layers) * 0.5 + (units - layers) * 2 / 63
    assert LINEAR.seconds(spec) / seconds == pytest.approx(speed["predicted_speedup"])


def test_another_phase_closes_other_gates(options: TrainOptions) -> None:
    result = train(replace(options, target_phase=PREFILL), timer)
    assert result.metrics["speed"]["phase"] == PREFILL
    plan = compile_gates(Checkpoint.open(options.base).spec, Gates.read(options.out))
    assert sum(len(layer.kv_heads) for layer in plan.layers) < 2 * len(plan.layers)


def test_a_speedup_out_of_reach_is_refused_before_anything_is_written(
    options: TrainOptions,
) -> None:
    with pytest.raises(TrainingError, match=r"--target-speedup 50: the nearest .* is \d+\.\d+ in"):
        train(replace(options, target_speedup=50.0), timer)
    assert not options.out.exists()


def test_a_base_of_another_task_is_refused(options: TrainOptions, tmp_path: Path) -> None:
    data = tmp_path / "labelled.csv"
    data.write_text("text,label\n" + "\n".join(f"{s},{i % 2}" for i, s in enumerate("abcdefgh")))
    other = replace(options, task="classification", data=data)
    with pytest.raises(TrainingError, match="which is timed otherwise than --task classification"):
        train(other, timer)


def test_the_command_measures_once_and_reports_speed_age_and_machine(
    options: TrainOptions, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_times, "ROUNDS", dict.fromkeys(block_times.ROUNDS, 1))
    measure, measured = block_times.measure_block_times, list[BlockTimes]()

    def measure_for_real(model: Checkpoint, engine: str, precision: Any) -> BlockTimes:
        measured.append(measure(model, engine, precision))
        # Times of a tiny model are noise, which no target could rely on.
        return replace(measured[-1], phases=fixed_times().phases)

    monkeypatch.setattr(known_block_times, "measure_block_times", measure_for_real)
    words: list[str | Path] = [
        *("train", options.base, "--data", options.data),
        *("--seq-len", "16", "--batch-size", "2"),
    ]
    words += ["--recovery", "none", "--target-speedup", "1.3", "--eval-blocks", "4"]
    status, out, err = run(capsys, *words, "--out", options.out)
    assert status == 0, err
    machine = re.escape(measured[0].machine)
    expected = (
        r"predicted to be 1\.\d\d times as fast in decode on onnx in int8, by block times measured "
        rf"[\d.]+ s ago on {machine}\n"
    )
    assert re.search(expected, out)
    assert "as measured" not in err
    again = options.out.with_name("again")
    status, out, err = run(capsys, *words, "--out", again)
    assert (status, len(measured)) == (0, 1), err
    assert re.search(rf"block times, as measured [\d.]+ \w+ ago on {machine}", err)
    status, out, err = run(capsys, *words, "--out", again.with_name("dry"), "--dry-run")
    assert "; target 1.3 times the speed of decode on onnx in int8\n" in out
