"""The demonstration's parts at the smallest size; the whole of it where minutes are at hand."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.commands.demo import NEEDED
from sgate_serve.data.documents import read_documents
from sgate_serve.demo.corpus import (
    EVAL_FILE,
    LEFT_OUT,
    TOKENIZER_FILE,
    TRAIN_FILE,
    is_held_out,
    read_sources,
    read_tests,
    write_corpus,
)
from sgate_serve.demo.serving import running_server
from sgate_serve.demo.shape import write_shape, write_shape_gates
from sgate_serve.demo.sizes import DemoSizes
from sgate_serve.demo.stages import Demo, Stage
from sgate_serve.demo.walkthrough import REPORT_FILE, check_sizes, run_stages
from sgate_serve.errors import EngineError, SgateError
from sgate_serve.gates import Gates
from sgate_serve.plan import LayerPlan, Plan, Target
from sgate_serve.text.tokenization import TextCodec

SIZES = replace(DemoSizes.quick(), max_files=40, shape_layers=4, shape_vocab_size=64)


def test_corpus_is_split_by_file_and_its_tokenizer_is_lossless(tmp_path: Path) -> None:
    with new_folder(tmp_path / "corpus") as writer:
        write_corpus(writer, SIZES)
    texts = {
        name: [json.loads(line)["text"] for line in (tmp_path / "corpus" / name).open()]
        for name in (TRAIN_FILE, EVAL_FILE)
    }
    sources = list(read_sources())[:40]
    assert len(texts[EVAL_FILE]) == sum(is_held_out(text) for _, text in sources) > 0
    assert len(texts[TRAIN_FILE]) + len(texts[EVAL_FILE]) == 40
    assert not set(texts[TRAIN_FILE]) & set(texts[EVAL_FILE])
    tokenizer = Tokenizer.from_file(str(tmp_path / "corpus" / TOKENIZER_FILE))
    for text in (texts[EVAL_FILE][0], "naïve 猫 🚀\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    codec = TextCodec.load(tmp_path / "corpus")
    assert codec is not None
    text = codec.render_chat([{"role": "user", "content": "hello"}])
    chat = codec.encode(text, add_special_tokens=False)
    assert codec.decode(chat) == '# user: hello\n"""'


def test_tests_are_trained_on_but_neither_held_out_nor_in_the_tokenizer(tmp_path: Path) -> None:
    tests = [text for _, text in read_tests()]
    if not tests:
        pytest.skip("this Python came without its tests")
    for name in ("without", "with"):
        with new_folder(tmp_path / name) as writer:
            write_corpus(writer, SIZES, with_tests=name == "with")
    for file in (EVAL_FILE, TOKENIZER_FILE):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    plain, more = (read_documents(tmp_path / name / TRAIN_FILE) for name in ("without", "with"))
    assert more == plain + [text for text in tests if text.strip() and not is_held_out(text)]


def test_sources_leave_out_tests_and_tables() -> None:
    names = [name for name, _ in read_sources()]
    assert "argparse.py" in names
    assert not any(LEFT_OUT & set(name.split("/")) for name in names)


def test_shape_loses_the_fractions_of_the_trained_model(tmp_path: Path) -> None:
    dense = LayerShape(num_heads=8, num_kv_heads=2, head_dim=4, mlp_units=10)
    dims = tuple(range(8))
    layers = (
        LayerPlan(0, dense, tuple(range(7)), tuple(range(8)), (0, 1), dims, dims),
        LayerPlan(1, dense, tuple(range(10)), (4, 5, 6, 7), (1,), dims[4:], dims[4:]),
    )
    write_shape(tmp_path / "dense", SIZES)
    base = Checkpoint.open(tmp_path / "dense")
    trained = Plan("llama", "x", Target(), layers, 16, 16, 0, 0)
    write_shape_gates(base, trained, tmp_path / "gates", seed=0)
    gates = Gates.read(tmp_path / "gates")
    gates.check(base)
    closed = {key: int((values == 0).sum()) for key, values in gates.values.items()}
    units = round(4864 * 0.3)
    assert [closed[f"model.layers.{i}.mlp_units"] for i in range(4)] == [units, units, 0, 0]
    assert [closed[f"model.layers.{i}.kv_groups"] for i in range(4)] == [0, 0, 1, 1]
    weights = base.read("model.layers.1.mlp.up_proj.weight").astype(np.float32)
    assert weights.std() == pytest.approx(0.02, rel=0.01)


def test_folder_of_another_size_is_refused_and_the_same_is_continued(tmp_path: Path) -> None:
    check_sizes(tmp_path / "demo", SIZES)
    check_sizes(tmp_path / "demo", SIZES)
    with pytest.raises(SgateError, match="holds a demo of another size; remove it"):
        check_sizes(tmp_path / "demo", DemoSizes())


def test_stages_are_skipped_by_their_last_file(tmp_path: Path) -> None:
    demo = Demo(tmp_path, SIZES)
    assert not any(stage.is_done for stage in demo.stages)
    demo.stages[0].run()
    assert [stage.is_done for stage in demo.stages[:2]] == [True, False]
    titles = [stage.title for stage in demo.stages]
    assert len(set(titles)) == len({stage.result for stage in demo.stages}) == len(titles)


def test_each_stage_is_announced_once_and_says_how_long_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = tmp_path / "done"
    stages = [Stage("write", done, done.touch), Stage("again", done, done.unlink)]
    run_stages(stages)
    run_stages(stages[:1])
    out = re.sub(r"\d\.\d s", "T s", capsys.readouterr().out)
    assert out.splitlines() == [
        "[1/2] write",
        "  done in T s",
        f"[2/2] again: already done, in {done}",
        f"[1/1] write: already done, in {done}",
    ]


def test_server_that_cannot_start_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with (
        pytest.raises(EngineError, match=r"its log is .*serve\.log"),
        running_server(tmp_path / "nowhere", log),
    ):
        raise AssertionError("no such model can be served")
    assert "no such folder" in log.read_text()


def test_missing_extras_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sgate_serve.cli import main

    monkeypatch.setattr("sgate_serve.environment.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert f"demo needs {', '.join(NEEDED)}" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_demo_from_corpus_to_report_and_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sgate_serve.cli", "demo", "--quick", "--dir", "demo"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "demo" / REPORT_FILE).read_text())
    assert report["removed"] == pytest.approx(0.3, abs=0.01)
    assert report["verification"]["passed"] is True
    assert set(report["perplexity"]) == {"dense", "pruned"}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout.count("already done") == len(Demo(tmp_path, SIZES).stages)
