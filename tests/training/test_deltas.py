"""Trained tensors of a 16-bit base: rounded before they are measured, then stored as they are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import TrainingError
from sgate_serve.gates import DELTAS_FILE, Gates
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.deltas import stored_array
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.tasks.causal_lm import load_frozen, read_data
from sgate_serve.training.tasks.evaluate import causal_lm_metrics
from tests.small_llama import dense_llama, save
from tests.text_model import SENTENCES, write_tokenizer


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    (tmp_path / "text.txt").write_text("\f".join([*SENTENCES] * 12), encoding="utf-8")
    return TrainOptions(
        base=str(tmp_path / "base"),
        data=tmp_path / "text.txt",
        out=tmp_path / "gates",
        steps=3,
        batch_size=2,
        seq_len=16,
        eval_blocks=4,
        precision="fp32",
        no_control=True,
    )


def write_base(folder: Path, dtype: torch.dtype) -> Checkpoint:
    model = dense_llama(vocab_size=400, intermediate_size=64, eos_token_id=1)
    save(model.to(dtype), folder)
    write_tokenizer(folder)
    return Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "F32"), (torch.bfloat16, "BF16"), (torch.float16, "F16")],
)
def test_deltas_have_the_dtype_of_the_base(
    options: TrainOptions, dtype: torch.dtype, name: str
) -> None:
    base = write_base(Path(options.base), dtype)
    train(options)
    gates = Gates.read(options.out)
    gates.check(base)
    assert {info.dtype for info in gates.deltas.values()} == {name}
    size = (options.out / DELTAS_FILE).stat().st_size
    assert size < (base.folder / "model.safetensors").stat().st_size


def test_biases_that_a_base_lacks_stay_fp32(options: TrainOptions) -> None:
    write_base(Path(options.base), torch.bfloat16)
    train(replace(options, recovery="bias"))
    deltas = Gates.read(options.out).deltas
    assert {info.dtype for name, info in deltas.items() if name.endswith(".bias")} == {"F32"}
    assert {info.dtype for name, info in deltas.items() if name.endswith(".weight")} == {"BF16"}


def test_what_is_measured_is_what_is_stored(options: TrainOptions) -> None:
    base = write_base(Path(options.base), torch.bfloat16)
    train(replace(options, learning_rate=0.05))
    scores = json.loads((options.out / "metrics.json").read_text())["scores"]
    gates = Gates.read(options.out)
    model = load_frozen(base)
    with torch.no_grad():
        for name, info in gates.deltas.items():
            values = torch.from_numpy(np.asarray(info.read(), np.float32))
            model.get_parameter(name).copy_(values)
    data = read_data(base, options)
    with masked_by(model, gates.masks(base.spec)):
        loss = causal_lm_metrics(model, data.held_out, 0)["loss"]
    assert loss.value == pytest.approx(scores["recovered"]["loss"]["value"], abs=1e-6)


def test_nan_is_refused(options: TrainOptions) -> None:
    base = write_base(Path(options.base), torch.bfloat16)
    model = dense_llama(vocab_size=400, intermediate_size=64)
    name = "model.layers.0.mlp.up_proj.weight"
    model.get_parameter(name).data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"training ended with NaN or infinity in .*up_proj"):
        stored_array(model, base, name)
