"""Block times: monotone tables, predictions that add up, mixes, and records."""

import json
from dataclasses import replace

import pytest

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan.block_times import (
    DECODE,
    MIX,
    MIX_STEPS,
    PREFILL,
    BlockTimes,
    PhaseTimes,
    WidthTimes,
)
from tests.training.masks.test_coupled_selection import spec_of

ATTENTION_TIMES = WidthTimes((1, 2, 4), (0.0, 2.0, 3.0))
MLP_TIMES = WidthTimes((1, 49, 97), (0.0, 4.0, 12.0))
STEP = PhaseTimes(5.0, {"attention": ATTENTION_TIMES, "mlp": MLP_TIMES})
PROMPT = PhaseTimes(
    7.0,
    {
        "attention": WidthTimes((1, 2, 4), (0.0, 1.0, 9.0)),
        "mlp": WidthTimes((1, 49, 97), (0.0, 1.0, 1.0)),
    },
)
TIMES = BlockTimes(
    "onnx", "int8", "a CPU", "2026-01-02T03:04:05+00:00", {DECODE: STEP, PREFILL: PROMPT}
)


def with_widths(kv_heads: int, mlp_units: int, layers: int = 3) -> ModelSpec:
    dense = spec_of(8, 4, layers=layers)
    shape = replace(
        dense.layers[0], num_kv_heads=kv_heads, num_heads=2 * kv_heads, mlp_units=mlp_units
    )
    return replace(dense, layers=(shape,) * layers)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({1: 1.0, 2: 3.0, 4: 4.0}, (0.0, 2.0, 3.0)),
        # A narrow block that seems slower than a wider one meets it half way.
        ({1: 1.0, 2: 5.0, 4: 3.0, 8: 6.0}, (0.0, 3.0, 3.0, 5.0)),
        ({8: 2.0, 1: 2.0, 4: 2.0}, (0.0, 0.0, 0.0)),
        ({1: 9.0, 2: 1.0}, (0.0, 0.0)),
    ],
)
def test_noise_does_not_make_narrow_blocks_slower(
    measured: dict[int, float], expected: tuple[float, ...]
) -> None:
    times = WidthTimes.of(measured)
    assert times.widths == tuple(sorted(measured))
    assert times.seconds == pytest.approx(expected)
    times.check()


def test_times_are_linear_between_widths_and_constant_beyond() -> None:
    assert [MLP_TIMES.at(width) for width in (0, 1, 25, 73, 97, 200)] == [0, 0, 2, 8, 12, 12]


def test_the_times_of_blocks_and_of_everything_else_add_up() -> None:
    assert STEP.seconds(with_widths(4, 97)) == 5 + 3 * (3 + 12)
    assert STEP.seconds(with_widths(2, 25)) == 5 + 3 * (2 + 2)
    uneven = with_widths(4, 97)
    uneven = replace(uneven, layers=(*uneven.layers[:2], with_widths(1, 1).layers[0]))
    assert STEP.seconds(uneven) == 5 + 2 * (3 + 12)


def test_a_mix_is_a_prompt_and_the_steps_that_answer_it() -> None:
    for spec in (with_widths(4, 97), with_widths(3, 60)):
        assert TIMES.phase(DECODE).seconds(spec) == STEP.seconds(spec)
        expected = PROMPT.seconds(spec) + MIX_STEPS * STEP.seconds(spec)
        assert TIMES.phase(MIX).seconds(spec) == pytest.approx(expected)


def test_a_record_can_be_read_again() -> None:
    assert BlockTimes.from_json(json.loads(json.dumps(TIMES.to_json()))) == TIMES


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("phases", "decode", "blocks", "mlp", "seconds"), [0.0, 4.0]),
        (("phases", "decode", "blocks", "mlp", "seconds"), [0.0, 4.0, 3.0]),
        (("phases", "decode", "blocks", "mlp", "seconds"), [0.0, 4.0, float("nan")]),
        (("phases", "decode", "blocks", "mlp", "widths"), [1, 1, 97]),
        (("phases", "decode", "blocks", "mlp"), {"widths": [], "seconds": []}),
        (("phases", "decode", "blocks"), {}),
        (("phases", "decode", "other"), "much"),
        (("phases", "decode", "other"), 0.0),
        (("phases",), 3),
        (("phases",), {}),
        (("measured_at",), "yesterday"),
    ],
)
def test_a_damaged_record_is_no_table(path: tuple[str, ...], value: object) -> None:
    record = TIMES.to_json()
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        BlockTimes.from_json(json.loads(json.dumps(record)))
