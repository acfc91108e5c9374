"""`sgate inspect` of any folder: where its headers and config disagree."""

import json
from pathlib import Path

import pytest

from tests.checkpoint.outline_models import both, changed, drop, keep, say, write
from tests.commands.running import run


def test_a_mixture_is_outlined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("deepseek_v3", tmp_path / "deepseek")
    status, text, _ = run(capsys, "inspect", folder)
    assert status == 0
    assert "model_type deepseek_v3, 4 layers, " in text
    assert "3 mixtures, 8 experts in each, 16 units in each\nconfig and headers agree\n" in text
    assert (
        "sgate does not load it: " in text and "model_type 'deepseek_v3' is not supported" in text
    )
    (tmp_path / "reap").mkdir()
    changed(folder, tmp_path / "reap", both(keep(6, bias=False), say(n_group=1)))
    status, text, _ = run(capsys, "inspect", tmp_path / "reap")
    assert status == 1
    assert "fault: model.layers.1.mlp (and 2 more): e_score_correction_bias has 8 values" in text
    status, text, _ = run(capsys, "inspect", tmp_path / "reap", "--json")
    report = json.loads(text)
    assert status == 1 and len(report["faults"]) == 1
    assert report["experts"] == {f"model.layers.{layer}.mlp": 6 for layer in (1, 2, 3)}
    status, _, error = run(capsys, "inspect", folder, "--plot", tmp_path / "w.png")
    assert status == 2 and "is not supported" in error


def test_a_folder_that_loads_may_have_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks without tensors are removed ones here, and random ones in transformers."""
    folder = write("llama", tmp_path / "llama")
    (tmp_path / "dropped").mkdir()
    changed(folder, tmp_path / "dropped", drop("model.layers.2."))
    status, text, _ = run(capsys, "inspect", tmp_path / "dropped")
    assert status == 0
    assert "fault: config.json: it says 4 layers, but there are no tensors of layer 2" in text
    # transformers does not take this one either.
    (tmp_path / "array").mkdir()
    changed(folder, tmp_path / "array", say(layer_types=["full_attention"] * 6))
    status, text, _ = run(capsys, "inspect", tmp_path / "array", "--json")
    assert status == 1
    assert "layer_types has 6 entries for 4 layers" in json.loads(text)["faults"][0]
