"""The reference engine: sizes and precision."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.runner import all_logits
from sgate_serve.engines.torch import TorchEngine, load_runner
from sgate_serve.errors import EngineError
from tests.small_llama import dense_llama, random_tokens, save


def test_stock_half_precision_folder_runs_in_fp32(tmp_path: Path) -> None:
    save(dense_llama().to(torch.bfloat16), tmp_path)
    runner = load_runner(tmp_path, SlotOptions())
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    assert all_logits(runner, random_tokens(5)).dtype == np.float32


def test_open_sizes(tmp_path: Path) -> None:
    save(dense_llama(), tmp_path)
    engine = TorchEngine.load(tmp_path)
    assert (engine.runner.num_slots, engine.max_model_len, engine.prefill_chunk) == (4, 256, 512)


def test_model_length_beyond_the_config_is_refused(tmp_path: Path) -> None:
    save(dense_llama(), tmp_path)
    with pytest.raises(EngineError, match=r"max_model_len 300 exceeds the 256 positions of .*json"):
        TorchEngine.load(tmp_path, SlotOptions(max_model_len=300))
