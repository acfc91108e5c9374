"""The dense control: what it measures, that it leaves no trace, and when it is reused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates import Gates
from sgate_serve.training import TrainOptions, methods, train
from sgate_serve.training.masks.known_scores import SCORES_DIR
from sgate_serve.training.phases.control import APART, CONTROLS_DIR, file_of
from sgate_serve.training.tasks.causal_lm import CausalLMTask
from tests.text_model import SENTENCES
from tests.training.small_run import small_run
from tests.training.test_train import PowerCutError, count_steps


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    return small_run(tmp_path, steps=6, learning_rate=0.02, save_steps=2)


def metrics_of(options: TrainOptions) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((options.out / "metrics.json").read_text())
    return metrics


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / CONTROLS_DIR).iterdir())


def test_the_control_is_the_dense_method_of_as_many_steps(
    options: TrainOptions, tmp_path: Path
) -> None:
    train(options)
    scores = metrics_of(options)["scores"]
    assert [*scores] == ["dense", "dense_trained", "masked", "recovered"]
    dense = replace(options, out=tmp_path / "dense", method="dense")
    train(dense)
    assert scores["dense_trained"] == metrics_of(dense)["scores"]["recovered"]
    assert scores["dense_trained"] != scores["dense"]
    assert [*metrics_of(dense)["scores"]] == ["dense", "masked", "recovered"]


def test_the_control_changes_nothing_else(options: TrainOptions, tmp_path: Path) -> None:
    alone = replace(options, out=tmp_path / "alone", no_control=True)
    train(options)
    train(alone)
    with_control, without = metrics_of(options), metrics_of(alone)
    scores = with_control["scores"]
    del scores["dense_trained"]
    assert scores == without["scores"]
    one, other = Gates.read(options.out), Gates.read(alone.out)
    for name, info in one.deltas.items():
        np.testing.assert_array_equal(other.deltas[name].read(), info.read())
    assert "control" in with_control["log"] and "control" not in without["log"]
    assert with_control["phases"]["control"] == with_control["phases"]["recovery"]


def test_another_target_reuses_the_control_and_says_so(
    options: TrainOptions, tmp_path: Path
) -> None:
    train(options)
    other = replace(options, out=tmp_path / "other", target=0.2, method="magnitude")
    train(other)
    first, second = metrics_of(options), metrics_of(other)
    assert second["scores"]["dense_trained"] == first["scores"]["dense_trained"]
    assert second["scores"]["masked"] != first["scores"]["masked"]
    assert "control" in first["log"] and "control" not in second["log"]
    assert not any("control" in note for note in first["notes"])
    assert any("control was trained and measured by an earlier" in n for n in second["notes"])
    assert len(cached(tmp_path)) == 1
    train(replace(options, out=tmp_path / "longer", steps=7))
    assert len(cached(tmp_path)) == 2


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"recovery": "bias"}, {"lora_rank": 3}, {"distill": 0.5}]
)
def test_what_shapes_the_control_is_part_of_its_key(
    options: TrainOptions, changes: dict[str, Any]
) -> None:
    base = Checkpoint.open(options.base)
    changed = replace(options, **changes)
    files = {file_of(CausalLMTask(base, one), one, base.digest) for one in (options, changed)}
    assert len(files) == 2


def test_the_options_apart_from_the_key_exist() -> None:
    assert set(APART) <= TrainOptions.__dataclass_fields__.keys()


def test_an_interrupted_control_continues(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = replace(options, out=tmp_path / "straight")
    train(straight)
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "empty"))
    count_steps(monkeypatch, limit=3)
    with pytest.raises(PowerCutError):
        train(options)
    monkeypatch.undo()
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "empty"))
    taken = count_steps(monkeypatch)
    train(replace(options, resume=True))
    # Of the control's six steps two were kept; the recovery takes six.
    assert len(taken) == 4 + 6
    losses = [metrics_of(one)["scores"]["dense_trained"]["loss"] for one in (straight, options)]
    assert losses[0]["value"] == pytest.approx(losses[1]["value"], abs=1e-6)


def test_a_damaged_entry_of_the_cache_is_replaced(options: TrainOptions, tmp_path: Path) -> None:
    train(options)
    (file,) = cached(tmp_path)
    file.write_text("{", encoding="utf-8")
    again = replace(options, out=tmp_path / "again")
    train(again)
    assert metrics_of(again)["scores"] == metrics_of(options)["scores"]
    assert json.loads(file.read_text())["held_out"]["loss"]


def test_more_held_out_files_have_scores_of_their_own(
    options: TrainOptions, tmp_path: Path
) -> None:
    man, essays = tmp_path / "man.txt", tmp_path / "essays.txt"
    man.write_text(SENTENCES[0] * 20, encoding="utf-8")
    essays.write_text(SENTENCES[1] * 20, encoding="utf-8")
    several = replace(options, eval_data=(man, essays, man))
    train(several)
    metrics = metrics_of(several)
    elsewhere = metrics["scores_elsewhere"]
    assert [*elsewhere] == ["essays", "man"]
    assert all([*stages] == [*metrics["scores"]] for stages in elsewhere.values())
    # The first file is measured under its own name as well, as it was given again.
    assert elsewhere["man"] == metrics["scores"]
    assert elsewhere["essays"] != metrics["scores"]
    assert metrics["examples"]["elsewhere"] == {"essays": 4, "man": 4}
    assert metrics["options"]["eval_data"] == [str(man), str(essays), str(man)]
    assert metrics["tokens_per_second"].keys() == {"control", "recovery"}
    assert metrics["precision"] == "fp32" and metrics["peak_rss_bytes"] > 2**26


def test_scores_are_found_once_for_all_targets(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(options, target=0.2, out=tmp_path / "alone")
    train(alone)
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "fresh"))
    train(options)
    (file,) = (tmp_path / "fresh" / SCORES_DIR).glob("*.json")
    scored: list[str] = []
    monkeypatch.setattr(methods, "scores_of", lambda method, *_: scored.append(method))
    shared = replace(alone, out=tmp_path / "shared")
    train(shared)
    assert not scored
    for key, values in Gates.read(alone.out).values.items():
        np.testing.assert_array_equal(Gates.read(shared.out).values[key], values)
    monkeypatch.undo()
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "fresh"))
    whole = file.read_text(encoding="utf-8")
    for damaged in (
        "{",
        "[]",
        "{}",
        re.sub(r"\d[-.e\d]*,", "null,", whole),
        whole.replace("[", "[1.0, "),
    ):
        file.write_text(damaged, encoding="utf-8")
        train(replace(shared, out=tmp_path / "again"))
        assert file.read_text(encoding="utf-8") == whole
        shutil.rmtree(tmp_path / "again")
    train(replace(options, out=tmp_path / "seeded", seed=1))
    assert len(list(file.parent.glob("*.json"))) == 2
