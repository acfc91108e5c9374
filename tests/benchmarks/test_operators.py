"""The benchmark of operators: it counts each product once; its table shows medians."""

from typing import Any

from benchmarks.operators import OperatorsOptions, run
from benchmarks.speed_tables import onednn_sentence, operator_rows

TINY = OperatorsOptions(
    hidden=128, mlp=256, layers=2, heads=2, kv_heads=1, vocab_size=512, rounds=2
)
BLOCK_WEIGHTS = 2 * (3 * 256 * 128 + 2 * 128 * 128 + 2 * 64 * 128)
HEAD_WEIGHTS = 512 * 128


def test_every_product_is_counted() -> None:
    record = run(TINY)
    expected = {
        "prefill_512": 512 * BLOCK_WEIGHTS + HEAD_WEIGHTS,
        "decode_batch_32": 32 * (BLOCK_WEIGHTS + HEAD_WEIGHTS),
    }
    for phases in record["precisions"].values():
        for phase, operators in phases.items():
            multiplied = sum(own["multiply_adds"] for own in operators.values())
            assert multiplied == expected[phase]
            assert all(len(own["seconds"]) == TINY.rounds for own in operators.values())
            assert sum(sum(own["seconds"]) for own in operators.values()) > 0
    int4 = record["precisions"]["int4"]["prefill_512"]
    assert {"MatMulNBits, 4 bits", "MatMulNBits, 8 bits", "GroupQueryAttention"} <= set(int4)
    for phases in record["onednn"].values():
        assert phases["prefill_512"]["multiply_adds"] == 2 * 3 * 512 * 256 * 128
        assert all(min(own["seconds"]) > 0 for own in phases.values())


def test_shares_and_speeds_are_of_medians() -> None:
    def work(*seconds: float, multiply_adds: float = 0) -> dict[str, Any]:
        return {"seconds": list(seconds), "multiply_adds": multiply_adds}

    rows = work(1.0, 9.0, 2.0, multiply_adds=4e9)
    operators = {"Mul": work(0.5, 0.5, 0.5), "GroupQueryAttention": work(1.0, 1.0, 1.0)}
    operators |= {"MatMulIntegerToFloat": rows, "Split": work(0.5, 0.5, 0.5)}
    record = {
        "precisions": {"int8": {"prefill_512": operators}},
        "onednn": {"bf16": {"prefill_512": rows}},
    }
    assert list(operator_rows(record)) == [
        "| share of the time (multiply-adds/s) | int8, prefill 512 |",
        "|---|---|",
        "| MatMulIntegerToFloat | 50% (2) |",
        "| GroupQueryAttention | 25% |",
        "| all others | 25% |",
    ]
    assert onednn_sentence(record).endswith("at 2 (prefill 512) in bf16.")
