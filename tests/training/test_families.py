"""Gates train on families whose modules are fused, transposed or ungated, or whose heads stay."""

from dataclasses import replace
from pathlib import Path

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.train_options import COUPLED, ROW_COL
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import ZOO, build
from tests.text_model import SENTENCES, write_tokenizer

WIDTHS = {
    "gpt2": "n_inner",
    **dict.fromkeys(
        ("phi3", "gemma3_text", "gemma4_text", "olmo2", "gpt_neox", "qwen3_5_text"),
        "intermediate_size",
    ),
}
RUNS = [
    (family, gates, recovery)
    for family in WIDTHS
    for gates, recovery in ((COUPLED, "bias"), (ROW_COL, "lora"))
    if gates == COUPLED or FAMILIES[family].recurrence is None
]


@pytest.mark.parametrize(("family", "gates", "recovery"), RUNS)
def test_gates_train_convert_and_verify(
    family: str, gates: str, recovery: str, tmp_path: Path
) -> None:
    variant = ZOO[family][0]
    sizes = {**variant.config, "vocab_size": 400, WIDTHS[family]: 96}
    build(replace(variant, config=sizes), seed=0).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    (tmp_path / "text.txt").write_text("\n\n".join(SENTENCES * 60), encoding="utf-8")
    options = TrainOptions(
        base=str(tmp_path / "base"),
        data=tmp_path / "text.txt",
        out=tmp_path / "gates",
        steps=4,
        batch_size=2,
        seq_len=16,
        method="gates",
        gates=gates,
        recovery=recovery,
        eval_blocks=4,
        precision="fp32",
        no_control=True,
    )
    result = train(options)
    assert abs(result.metrics["removed"] - options.weight_target) <= 0.01
    convert(ConvertOptions(options.base, tmp_path / "out", options.out))
    verified = verify(VerifyOptions(options.base, str(tmp_path / "out"), options.out, "torch"))
    assert verified.passed and verified.tensors_equal, verified.difference
