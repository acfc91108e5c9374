"""`--sizes` and `--keep`: one folder, deployed at several sizes on every engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters.convert import open_masked
from converters.sizes import masked_to
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Request
from sgate_serve.engines.table import ONNX
from sgate_serve.loaders.torch_model import dense_model
from sgate_serve.plan.sizes import read_sizes
from tests.commands.running import run
from tests.engines import drive
from tests.ranked_gates import keeps_of, write_ranked_gates
from tests.small_llama import dense_llama, reference_greedy
from tests.text_model import write_tokenizer

PROMPT = drive.prompt(9)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model") / "base"
    dense_llama(vocab_size=400, max_position_embeddings=512).save_pretrained(folder)
    write_tokenizer(folder)
    return Checkpoint.open(folder)


@pytest.fixture
def gates(base: Checkpoint, tmp_path: Path) -> Path:
    return write_ranked_gates(base, tmp_path / "gates", 0.1)


@pytest.fixture
def out(base: Checkpoint, gates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder, keeps = tmp_path / "out", keeps_of(base.folder, gates, 0.3, 0.7)
    sizes = ",".join(map(str, keeps))
    words = ("convert", base.folder, "--gates", gates, "--sizes", sizes, "--out", folder)
    status, shown, err = run(capsys, *words)
    assert status == 0, err
    assert [line.partition(":")[0] for line in shown.splitlines()[-2:]] == [
        f"--keep {keep:g}" for keep in keeps
    ]
    return folder


def masked_tokens(base: Checkpoint, gates: Path, out: Path, keep: float) -> list[int]:
    """Return the greedy tokens of the masked dense model of a size, in transformers."""
    (step,) = (size.step for size in read_sizes(out) if size.keep == keep)
    model: Any = dense_model(masked_to(open_masked(base.folder, gates), step))
    return reference_greedy(model, PROMPT, 8)


def test_a_size_is_verified_inspected_and_evaluated(
    base: Checkpoint, gates: Path, out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keep = read_sizes(out)[1].keep
    size = ("--keep", f"{keep}")
    given = ("verify", base.folder, "--gates", gates, out)
    shown = run(capsys, "inspect", out, *size)[1].splitlines()
    assert shown[0].startswith(f"{out}, size {keep:g}, in ")
    wanted = f"not verified yet: run `sgate verify CHECKPOINT [--gates G] {out} --keep {keep:g}`"
    assert shown[-1] == wanted
    status, verified, err = run(capsys, *given, *size, "--engine", ONNX)
    assert (status, verified.splitlines()[-1]) == (0, "verified"), err
    assert not (out / "verification.json").exists()
    reports = [json.loads(run(capsys, "inspect", out, *more, "--json")[1]) for more in ((), size)]
    assert [each["keep"] for each in reports[0]["sizes"]] == [s.keep for s in read_sizes(out)]
    assert reports[1]["sizes"] == [] and reports[0]["certificate"] is None
    assert reports[1]["certificate_is_current"] is True
    assert reports[1]["removed"] == reports[0]["sizes"][1]["removed"]
    assert 1 - reports[1]["removed"] == pytest.approx(keep, abs=0.005)
    (tmp_path / "text.txt").write_text("one two three four five six seven eight\n" * 99)
    data = ("--data", tmp_path / "text.txt", "--seq-len", "32", "--eval-blocks", "2")
    status, scored, err = run(capsys, "eval", out, *size, *data)
    assert status == 0 and scored.startswith(f"{out}, size {keep:g} on torch"), err
    status, _, err = run(capsys, "eval", base.folder, "--gates", gates, *size, *data)
    assert status == 2 and "--keep with --gates: a masked model has one size" in err
    status, _, err = run(capsys, "inspect", out, "--keep", "0.123")
    assert status == 2 and f"--keep 0.123: {out} has the sizes" in err


def test_a_size_is_compared_with_the_dense_model(
    base: Checkpoint, out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keep, record = read_sizes(out)[1].keep, tmp_path / "c.json"
    work = ("--rounds", "1", "--decode-steps", "2", "--prefill-tokens", "8", "--batches", "1")
    ideals = []
    for size in ((), ("--keep", f"{keep}")):
        words = ("bench", "compare", base.folder, out, *size, *work, "--json", record)
        status, _, err = run(capsys, *words, "--", "--threads", "1")
        assert status == 0, err
        found = json.loads(record.read_text())
        ideals.append(found["speedups"][ONNX]["decode_batch_1"]["ideal"])
        assert found["pruned"] == (f"{out}, size {keep:g}" if size else str(out))
    assert 1 < ideals[0] < ideals[1]


@pytest.mark.parametrize("engine", [ONNX, "torch"])
def test_a_served_size_answers_as_its_masked_model(
    engine: str,
    base: Checkpoint,
    gates: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[Callable[[], Any]] = []

    def serve(options: Any, load: Callable[[], Any], *others: Any) -> int:
        loads.append(load)
        return 0

    monkeypatch.setattr("sgate_serve.server.serve", serve)
    found, expected = [], []
    for size in read_sizes(out):
        words = ("serve", out, "--keep", f"{size.keep}", "--engine", engine)
        assert run(capsys, *words)[0] == 0
        served = loads.pop()()
        assert served.name == "out"
        request = Request("a", PROMPT, drive.greedy(8))
        found.append(drive.run(served.engine, [request])["a"].tokens)
        expected.append(masked_tokens(base, gates, out, size.keep))
    assert found == expected and found[0] != found[1]
