"""Int8 folders in vLLM's own int8 kernels: the plan holds, and rounding costs little."""

from dataclasses import replace
from pathlib import Path

import pytest

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.test_equivalence import converted
from tests.families.zoo import VARIANTS

pytestmark = pytest.mark.vllm

NAMES = (
    *("llama-biased-tied", "phi3-partial-rotary", "gemma4_text-keys-are-values"),
    *("qwen3_5_text-tied", "bert-classifier", "qwen2_moe-shared"),
)


@pytest.mark.parametrize("name", NAMES)
def test_int8_verifies_within_a_small_divergence(name: str, tmp_path: Path) -> None:
    variant = next(variant for variant in VARIANTS if str(variant) == name)
    at = converted(variant, tmp_path, skip=0, index_price=0, precision="int8")
    assert Checkpoint.open(at["out"]).spec.lowered
    options = VerifyOptions(
        str(at["base"]), str(at["out"]), at["gates"], "vllm", max_divergence=0.05
    )
    result = verify(options)
    assert result.passed and result.tensors_equal, result.difference
    assert result.quantization is not None
    divergence = result.quantization.mean_kl
    assert divergence is not None and 0 < divergence < 0.05
    if name == NAMES[0]:
        strict = verify(replace(options, max_divergence=divergence / 2))
        assert not strict.passed
