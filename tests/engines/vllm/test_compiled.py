"""The same models through torch.compile: what is compiled computes what is not."""

from pathlib import Path

import numpy as np
import pytest

from sgate_serve.loaders.torch_model import TorchModel
from tests.engines.vllm.start import vllm_engine
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO, Variant
from tests.small_llama import random_tokens

pytestmark = pytest.mark.vllm


# The last one is a classifier of ModernBERT that reads the mean of all tokens.
VARIANTS = [
    *(ZOO["llama"][1], ZOO["bert"][1], ZOO["modernbert"][2]),
    pytest.param(ZOO["qwen3_5_text"][1], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_compiled_logits_are_the_eager_ones(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    folder = converted(variant, tmp_path, skip=0, index_price=0)["out"]
    tokens = 1 + random_tokens(20, vocab_size=96)
    with vllm_engine(folder) as engine:
        eager = engine.logits(tokens)
    words = ["--no-enforce-eager", "--max-num-batched-tokens=64"]
    with vllm_engine(folder, words) as engine:
        compilation = engine.engine.vllm_config.compilation_config
        assert compilation.mode.name == "DYNAMO_TRACE_ONCE"
        compiled = engine.logits(tokens)
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-4)
    reference = TorchModel.converted(folder).logits(tokens)
    np.testing.assert_allclose(compiled, reference, rtol=0, atol=1e-4)
