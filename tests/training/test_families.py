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
from tests.families.zoo import ZOO, Variant, build
from tests.text_model import SENTENCES, write_tokenizer

WIDTHS = {
    "gpt2": "n_inner",
    **dict.fromkeys(
        ("phi3", "gemma3_text", "gemma4_text", "olmo2", "gpt_neox", "qwen3_5_text"),
        "intermediate_size",
    ),
}
# Layers with inputs of their own, which all tunings but that of whole models leave alone.
INPUTS = next(one for one in ZOO["gemma4_text"] if one.name == "shared-keys-inputs")
INPUTS = replace(INPUTS, config={**INPUTS.config, "num_kv_shared_layers": 0})
RUNS = [
    (ZOO[family][0], gates, recovery)
    for family in WIDTHS
    for gates, recovery in ((COUPLED, "bias"), (ROW_COL, "lora"))
    if gates == COUPLED or FAMILIES[family].recurrence is None
]
RUNS += [(INPUTS, COUPLED, "full"), (INPUTS, COUPLED, "lora")]


@pytest.mark.parametrize(("variant", "gates", "recovery"), RUNS, ids=str)
def test_gates_train_convert_and_verify(
    variant: Variant, gates: str, recovery: str, tmp_path: Path
) -> None:
    sizes = {**variant.config, "vocab_size": 400, WIDTHS[variant.family]: 96}
    sizes |= {"vocab_size_per_layer_input": 400} if variant is INPUTS else {}
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
