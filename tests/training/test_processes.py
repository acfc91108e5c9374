"""A run in two processes, started as a user starts it."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.gates import Gates
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.run_dir import run_dir_of
from tests.small_llama import dense_llama, save
from tests.text_model import SENTENCES, write_tokenizer

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    save(dense_llama(vocab_size=400, intermediate_size=64, eos_token_id=1), tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    rng, data = random.Random(0), tmp_path / "text.jsonl"
    texts = [{"text": ". ".join(rng.choices(SENTENCES[:2], k=6))} for _ in range(40)]
    data.write_text("\n".join(json.dumps(text) for text in texts), encoding="utf-8")
    return {
        "base": str(tmp_path / "base"),
        "data": data,
        "steps": 4,
        "seq_len": 16,
        "precision": "fp32",
    }


def run_in_two(out: Path, *words: str, **options: Any) -> tuple[str, str]:
    """Return what `sgate train` writes to stdout and stderr under torchrun."""
    flags = {"data": "--data", "steps": "--steps", "seq_len": "--seq-len", "method": "--method"}
    flags |= {"batch_size": "--batch-size", "precision": "--precision"}
    named = [part for name, flag in flags.items() for part in (flag, str(options[name]))]
    command = [*LAUNCH, "-m", "sgate_serve.cli", "train", options["base"], "--out", str(out)]
    command += [*named, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def train_in_two(out: Path, **options: Any) -> dict[str, Any]:
    """Return the metrics of a run in two processes."""
    printed, shown = run_in_two(out, **options)
    assert printed.count("next: sgate convert") == 1
    # The first process reports each phase, and the libraries say nothing of their own.
    phases = re.findall(r"^(.+): \d+ \w+ in ", shown, re.MULTILINE)
    assert len(set(phases)) == len(phases)
    assert {"measuring the dense model", "recovery", "measuring the recovered model"} < {*phases}
    assert not re.search(r"\bit/s|%\||\{'|\[transformers\]|Warning", printed + shown), shown
    assert not run_dir_of(out).exists()
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def test_two_processes_are_one_of_twice_the_batch(options: dict[str, Any], tmp_path: Path) -> None:
    train_in_two(tmp_path / "two", method="magnitude", batch_size=2, **options)
    train(TrainOptions(out=tmp_path / "one", method="magnitude", batch_size=4, **options))
    two, one = Gates.read(tmp_path / "two"), Gates.read(tmp_path / "one")
    assert one.values.keys() == two.values.keys()
    for key, values in one.values.items():
        np.testing.assert_array_equal(two.values[key], values)
    for name in one.deltas:
        np.testing.assert_allclose(two.deltas[name].read(), one.deltas[name].read(), atol=2e-5)


def test_one_process_says_what_would_be_trained(options: dict[str, Any], tmp_path: Path) -> None:
    printed, _ = run_in_two(
        tmp_path / "none", "--dry-run", method="fisher", batch_size=2, **options
    )
    assert printed.count("target 30%") == 1
    assert not (tmp_path / "none").exists()


def test_gates_train_in_two_processes(options: dict[str, Any], tmp_path: Path) -> None:
    metrics = train_in_two(tmp_path / "two", method="gates", batch_size=2, **options)
    assert metrics["removed"] == pytest.approx(0.3, abs=0.005)
    assert Gates.read(tmp_path / "two").deltas
