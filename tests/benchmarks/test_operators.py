"""The benchmark of operators: it counts each product once, and its table adds up."""

from benchmarks.operators import OperatorsOptions, run
from benchmarks.speed_tables import onednn_sentence, operator_rows

TINY = OperatorsOptions(
    hidden=128, mlp=256, layers=2, heads=2, kv_heads=1, vocab_size=512, rounds=2
)
BLOCK_WEIGHTS = 2 * (3 * 256 * 128 + 2 * 128 * 128 + 2 * 64 * 128)
HEAD_WEIGHTS = 512 * 128


def test_every_product_is_counted_and_every_operator_shown() -> None:
    record = run(TINY)
    expected = {
        "prefill_512": 512 * BLOCK_WEIGHTS + HEAD_WEIGHTS,
        "decode_batch_32": 32 * (BLOCK_WEIGHTS + HEAD_WEIGHTS),
    }
    for phases in record["precisions"].values():
        for phase, operators in phases.items():
            multiplied = sum(own["multiply_adds"] for own in operators.values())
            assert multiplied == expected[phase]
            assert all(own["seconds"] >= 0 for own in operators.values())
    int4 = record["precisions"]["int4"]["prefill_512"]
    assert {"MatMulNBits, 4 bits", "MatMulNBits, 8 bits", "GroupQueryAttention"} <= set(int4)
    header, _, *rows = operator_rows(record)
    assert header.count("|") == 8
    for column in range(2, 8):
        cells = [row.split(" | ")[column - 1].partition("%")[0] for row in rows]
        assert abs(sum(int(cell) for cell in cells if cell.strip(" |")) - 100) <= len(rows)
    assert onednn_sentence(record).count(" in ") == 3
