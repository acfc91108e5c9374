"""Pretraining a small Llama from nothing: what it writes, how long it runs, what it refuses."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import pack
from sgate_serve.errors import TrainingError
from sgate_serve.training.pretrain import LlamaSizes, PretrainOptions, pretrain
from sgate_serve.training.tasks.evaluate import mean_loss
from tests.text_model import EOS, SENTENCES, byte_tokenizer, write_tokenizer


@pytest.fixture
def options(tmp_path: Path) -> PretrainOptions:
    write_tokenizer(tmp_path)
    return PretrainOptions(
        out=tmp_path / "dense",
        documents=SENTENCES * 20,
        tokenizer_files=[tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"],
        end_token=EOS,
        sizes=LlamaSizes(hidden=32, layers=2, heads=4, kv_heads=2, mlp_units=48),
        steps=12,
        batch_size=4,
        seq_len=16,
        learning_rate=1e-2,
        save_steps=5,
    )


def test_the_folder_loads_everywhere_and_has_learnt(options: PretrainOptions) -> None:
    pretrain(options)
    names = {path.name for path in options.out.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    base = Checkpoint.open(options.out)
    assert base.spec.tied_head
    assert base.config["eos_token_id"] == byte_tokenizer().token_to_id(EOS)
    model = AutoModelForCausalLM.from_pretrained(options.out)
    blocks = pack(options.documents, byte_tokenizer(), 1, options.seq_len)
    assert mean_loss(model, blocks) < math.log(base.spec.vocab_size) - 0.5
    assert not options.out.with_name("dense.work").exists()


def test_an_interrupted_run_continues(
    options: PretrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(options)
    cut = replace(options, out=options.out.with_name("cut"))

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.Trainer._save_optimizer_and_scheduler", full_disk)
        with pytest.raises(OSError, match="no space left"):
            pretrain(cut)
    assert not cut.out.exists()
    with pytest.raises(TrainingError, match="started with a different seed; give the options in"):
        pretrain(replace(cut, seed=1))
    pretrain(cut)
    straight, resumed = Checkpoint.open(options.out), Checkpoint.open(cut.out)
    for name in straight.tensors:
        np.testing.assert_allclose(resumed.read(name), straight.read(name), atol=1e-6)


def test_a_complete_run_whose_folder_could_not_be_written_is_not_repeated(
    options: PretrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("sgate_serve.training.pretrain.shutil.copyfile", full_disk)
        with pytest.raises(OSError, match="no space left"):
            pretrain(options)
    assert not options.out.exists()
    last = options.out.with_name("dense.work") / "checkpoint-12" / "model.safetensors"
    trained = load_file(last)
    monkeypatch.setattr("transformers.Trainer.training_step", full_disk)
    pretrain(options)
    base = Checkpoint.open(options.out)
    for name, tensor in trained.items():
        np.testing.assert_array_equal(base.read(name), tensor.numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps 0: give a whole number of at least 1"),
        ({"tokenizer_files": []}, r"tokenizer_files hold no tokenizer\.json; add the tokenizer"),
        ({"end_token": "<none>"}, r"tokenizer\.json has no token '<none>'"),
        ({"documents": ["the"]}, "less than one block of 16"),
    ],
)
def test_contradicting_options_are_refused(
    options: PretrainOptions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        pretrain(replace(options, **changes))
    assert not options.out.exists()
    assert not options.out.with_name("dense.work").exists()


def test_an_out_folder_that_is_not_empty_is_refused(options: PretrainOptions) -> None:
    options.out.mkdir()
    (options.out / "note").write_text("mine")
    with pytest.raises(TrainingError, match="dense is not empty"):
        pretrain(options)
