"""The command line as scripts use it: exit statuses, one-line errors, JSON on stdout, start-up."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from converters.explain import format_indices
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import COMMANDS
from sgate_serve.verify.certificate import CERTIFICATE_FILE
from tests.commands.running import run
from tests.converters.test_convert import random_gates, write_gates
from tests.families.zoo import ZOO, build
from tests.small_llama import dense_llama, save
from tests.training.labelled_text import write_examples, write_model
from tests.verify.test_verify import tamper

HEAVY = ("torch", "transformers", "onnxruntime", "onnx_ir", "vllm", "matplotlib", "numpy")


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    checkpoint = save(dense_llama(), tmp_path / "base")
    write_gates(checkpoint, tmp_path / "gates", **random_gates(checkpoint, 5, 0.4))
    return checkpoint


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sgate_serve.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: assert not set({HEAVY}) & set(sys.modules), sorted(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)


def test_int4_is_the_graphs_alone_and_shown(
    base: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    root = base.folder.parent
    words: list[str | Path] = ["convert", base.folder, "--gates", root / "gates"]
    words += ["--out", root / "out"]
    status, _, err = run(capsys, *words, "--precision", "int4")
    assert status == 2 and "--precision int4 exists only for the ONNX graph" in err
    status, out, _ = run(capsys, *words, "--precision", "int4", "--to", "hf,onnx")
    assert status == 0
    assert out.splitlines()[-1] == "HF layout in fp32, ONNX graph in int4"
    assert "ONNX graph in `onnx/` is in int4" in (root / "out" / "README.md").read_text()
    status, out, _ = run(capsys, "inspect", root / "out")
    size = (root / "out" / "onnx" / "model.onnx.data").stat().st_size
    assert status == 0 and f"ONNX graph: int4 in blocks of 128, {size:,} bytes" in out
    report = json.loads(run(capsys, "inspect", root / "out", "--json")[1])
    assert report["onnx"] == {"precision": "int4", "block": 128, "bytes": size}
    assert report["precision"] == "fp32"
    # The head has 8 bits: it weighs more in the ideal of such a graph.
    run(capsys, "convert", base.folder, "--gates", root / "gates", "--out", root / "floats")
    floats = json.loads(run(capsys, "inspect", root / "floats", "--json")[1])
    assert floats["onnx"] is None
    assert report["predicted_speedup"]["decode"] < floats["predicted_speedup"]["decode"]


def test_int8_in_rows_is_said_to_be_for_this_cpu(
    base: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converters.convert.cpu_flags", lambda: ("avx512_vnni",))
    out = base.folder.with_name("rows")
    words = ("convert", base.folder, "--to", "hf,onnx", "--precision", "int8", "--out", out)
    status, shown, err = run(capsys, *words)
    assert status == 0, err
    last = "HF layout in int8, ONNX graph in int8, in rows as this CPU has VNNI"
    assert shown.splitlines()[-1] == last
    assert "ONNX graph: int8 in rows and blocks of 64, " in run(capsys, "inspect", out)[1]
    # Which form a graph has is not for the CPU that verifies it to say.
    monkeypatch.undo()
    assert run(capsys, "verify", base.folder, out)[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"usage: sgate {command}" in out


def test_core_commands_import_neither_torch_nor_transformers(
    base: Checkpoint, tmp_path: Path
) -> None:
    folder, out = base.folder, tmp_path / "out"
    code = (
        "import os, sys\n"
        "for name in ('torch', 'transformers', 'peft'): sys.modules[name] = None\n"
        "from sgate_serve.cli import main\n"
        f"gates = ['--gates', {str(tmp_path / 'gates')!r}]\n"
        f"assert main(['plan', {str(folder)!r}, *gates]) == 0\n"
        f"assert main(['convert', {str(folder)!r}, *gates, '--out', {str(out)!r},"
        " '--to', 'hf,onnx']) == 0\n"
        f"assert main(['inspect', {str(out)!r}]) == 0\n"
        "assert os.environ.pop('OMP_WAIT_POLICY') == 'PASSIVE'\n"
        f"assert main(['bench', 'compare', {str(folder)!r}, {str(out)!r}, '--rounds', '1',"
        " '--decode-steps', '2', '--prefill-tokens', '8']) == 0\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ\n"
    )
    unset = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=unset)
    assert result.returncode == 0, result.stderr


def test_plan_explains_and_prints_one_json_object(
    base: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = ("--gates", tmp_path / "gates" / "gates.safetensors")
    status, out, _ = run(capsys, "plan", base.folder, *gates, "--explain")
    assert status == 0
    assert "MLP units: down column is zero (rule 1 MLP unit never read)" in out
    path = tmp_path / "plan.json"
    status, out, err = run(capsys, "plan", base.folder, *gates, "--json", "--out", path)
    assert (status, err) == (0, "")
    assert json.loads(out)["layers"] == json.loads(path.read_text())["layers"]


def test_uniform_is_planned_with_its_price_and_converts_to_a_stock_model(
    base: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates, out = ("--gates", tmp_path / "gates"), tmp_path / "out"
    status, text, _ = run(capsys, "plan", base.folder, *gates, "--uniform", "--explain")
    header, *_ = text.splitlines()
    assert status == 0 and header.split()[-2:] == ["removed", "revived"]
    assert "MLP units revived: every layer has " in text
    assert re.search(r"\(uniform, alignment 1\)\n.*\n  \d\S+% dead but revived so that all", text)
    status, _, _ = run(capsys, "convert", base.folder, *gates, "--uniform", "--out", out)
    assert status == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    status, text, _ = run(capsys, "inspect", out)
    assert status == 0 and "dead but revived for a width" in text


def test_a_reader_that_stops_early_gets_no_traceback(base: Checkpoint) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sgate_serve", "plan", str(base.folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


@pytest.mark.parametrize("status", [0, 2])
def test_a_process_does_not_end_the_thread_of_an_engine_that_loads(status: int) -> None:
    # Python would end it at exit, after what is registered here; C++ aborts the process for that.
    code = (
        "import atexit, threading, time; from sgate_serve import cli, environment\n"
        "atexit.register(print, 'ended')\n"
        "name = environment.ENGINE_THREAD\n"
        "threading.Thread(target=time.sleep, args=(60,), name=name, daemon=True).start()\n"
        f"cli.main = lambda: print('last words') or {status}\n"
        "cli.script()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stdout, run.stderr) == (status, "last words\n", "")


def test_convert_verify_inspect(
    base: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates, out = ("--gates", tmp_path / "gates"), tmp_path / "out"
    status, text, _ = run(capsys, "inspect", base.folder)
    assert status == 0 and "not converted yet: run `sgate convert THIS_FOLDER" in text
    status, text, _ = run(capsys, "convert", base.folder, *gates, "--out", out)
    assert status == 0 and "closed gates removed" in text
    status, text, _ = run(capsys, "inspect", out)
    assert status == 0 and "not verified yet" in text
    status, text, _ = run(capsys, "verify", base.folder, *gates, out, "--engine", "torch")
    assert status == 0 and text.endswith("verified\n")
    status, text, _ = run(capsys, "inspect", out, "--json", "--plot", tmp_path / "w.png")
    report = json.loads(text)
    assert report["certificate"]["passed"] is True
    assert report["fingerprint"] == Checkpoint.open(out).fingerprint
    assert (tmp_path / "w.png").stat().st_size > 1000


def test_verify_exits_1_and_names_the_layer_of_a_tampered_weight(
    base: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates, out = ("--gates", tmp_path / "gates"), tmp_path / "out"
    run(capsys, "convert", base.folder, *gates, "--out", out)
    tamper(out, "model.layers.1.mlp.up_proj.weight")
    status, text, _ = run(capsys, "verify", base.folder, *gates, out, "--engine", "torch")
    assert status == 1
    assert "DIFFERS: first differing layer: 1" in text
    assert json.loads((out / CERTIFICATE_FILE).read_text())["passed"] is False


def test_bench_compare_measures_a_model_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Checkpoint.open(write_model(tmp_path / "llama", "llama"))
    folders = (base.folder, base.folder, "--beside", f"masked={base.folder}")
    sizes = ("--rounds", "1", "--decode-steps", "2", "--prefill-tokens", "8", "--batches", "1,3")
    files = ("--json", tmp_path / "c.json", "--plot", tmp_path / "c.png")
    data = write_examples(tmp_path / "eval.jsonl", 40)
    more = ("--report", tmp_path / "c.html", "--data", data)
    engine = ("--engine", "auto", "--", "--threads", "1", "--precision", "int8")
    status, out, err = run(capsys, "bench", "compare", *folders, *sizes, *files, *more, *engine)
    assert status == 0, err
    assert "masked:\ndecode_batch_1 " in out
    assert (
        re.search(r"^prefill +dense ms +share", out, re.M) and "% of the dense model's time" in out
    )
    record = json.loads((tmp_path / "c.json").read_text())
    assert list(record["beside"]["masked"]) == ["decode_batch_1", "decode_batch_3", "prefill"]
    assert record["workload"]["engine_arguments"] == ["--threads", "1", "--precision", "int8"]
    assert record["quality"]["pruned"]["precision"] == "int8"
    assert record["command"].startswith("sgate bench compare ")
    assert (tmp_path / "c.png").stat().st_size > 1000
    page = (tmp_path / "c.html").read_text()
    assert all(
        sentence in html.unescape(page)
        for sentence in record["explanation"]["sentences"]["prefill"]
    )


@pytest.mark.parametrize(
    ("kind", "count"), [("throughput", "--num-prompts"), ("latency", "--batch-size")]
)
def test_bench_measures_requests_without_a_server(
    base: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, count: str
) -> None:
    sizes = ("--input-len", "8", "--output-len", "2", "--num-iters", "1", count, "3")
    file, engine = ("--json", tmp_path / "o.json"), ("--", "--threads", "1", "--precision", "int8")
    status, out, _ = run(capsys, "bench", kind, base.folder, *sizes, *file, *engine)
    assert status == 0
    assert out.startswith("onnx: 3 requests") and str(base.folder) in out.splitlines()[-1]
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["models"][str(base.folder)]["precision"] == "int8"
    assert record["workload"]["engine_arguments"] == ["--threads", "1", "--precision", "int8"]
    assert record["floor"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["plan"], "the following arguments are required: CHECKPOINT"),
        (["plan", "/nowhere/at/all"], "no such folder"),
        (["inspect", "BASE", "--plot", "w.bmp"], "w.bmp: give a file name that ends in .png"),
        (["convert", "BASE", "--out", "BASE"], "is not empty; give a new folder"),
        (
            ["serve", "BASE", "--engine", "tgi"],
            "unknown engine 'tgi'; use one of: onnx, torch, vllm",
        ),
        (["serve", "BASE", "--port", "0", "--", "--frob", "1"], "--frob"),
        (["serve", "BASE", "--model", ","], "--model: ',': give a word, or several separated by"),
        (["serve", "BASE", "--", "--slots", "0"], "slots must be at least 1, found 0"),
        (["inspect", "BASE", "--", "--slots", "4"], "nothing is expected after `--`"),
        (["bench", "compare", "BASE", "BASE", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["bench", "compare", "BASE", "BASE", "--batches", "1,x"], "'1,x': give whole numbers"),
        (["bench", "compare", "BASE", "BASE", "--batches", "4,4"], "--batches '4,4': give diff"),
        (["bench", "compare", "BASE", "BASE", "--beside", "BASE"], "expected NAME=FOLDER"),
        (
            ["bench", "compare", "BASE", "BASE", "--engine", "onnx", "--", "--draft", "BASE"],
            "--draft: this comparison times steps of one token",
        ),
        (
            ["serve", "BASE", "--engine", "onnx", "--draft", "BASE", "--", "--draft", "BASE"],
            "--draft is given before `--` and after it; give it once",
        ),
        (
            ["serve", "BASE", "--engine", "onnx", "--", "--draft-tokens", "3"],
            "--draft-tokens has no effect without --draft",
        ),
        (["bench", "compare", "BASE", "BASE", "--beside", "a=/no"], "/no: no such folder"),
        (
            ["bench", "compare", "BASE", "BASE", "--beside", "a=BASE", "--beside", "a=BASE"],
            "--beside a: given for",
        ),
        (["bench", "compare", "BASE", "BASE", "--", "--slots", "4"], "--slots cannot be set here"),
        (["bench", "latency", "BASE", "--report", "r.pdf"], "--report r.pdf: give a file name"),
        (["bench", "compare", "BASE", "BASE", "--data", "d.txt"], "tokenizer.json is missing"),
        (
            ["bench", "compare", "BASE", "BASE", "--json", "BASE/config.json"],
            "config.json would replace what is read",
        ),
        (
            ["bench", "latency", "BASE", "--json", "a.md", "--report", "./a.md"],
            "--json and --report name the same file",
        ),
        (["bench", "latency", "BASE", "--output-len", "0"], "--output-len 0: must be at least 1"),
        (["bench", "throughput", "BASE", "BASE"], "a model is given twice"),
        (["bench", "latency", "BASE", "--", "--slots", "4"], "--batch-size or --max-num-seqs"),
        (["train", "BASE", "--data", "d.txt", "--out", "o", "--gates", "rows"], "--gates rows"),
        (["verify", "BASE", "BASE", "--num-prompts", "0"], "--num-prompts 0: give a whole number"),
        (["verify", "BASE", "BASE", "--prompt-tokens", "0"], "of at least 1"),
        (["eval", "BASE", "--data", "d.txt", "--seq-len", "1"], "--seq-len 1: give a whole numb"),
        (["eval", "BASE", "--data", "d.txt", "--eval-blocks", "0"], "of at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    base: Checkpoint, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    status, out, err = run(capsys, *(word.replace("BASE", str(base.folder)) for word in words))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_long_lists_of_indices_are_cut() -> None:
    assert format_indices((0, 1, 2, 7)) == "0-2, 7"
    assert format_indices(tuple(range(0, 40, 2))).endswith("12, 14, and 12 more")


def test_classifier_is_converted_verified_and_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    write_gates(base, tmp_path / "gates", **random_gates(base, 5, 0.4))
    gates, out = ("--gates", tmp_path / "gates"), tmp_path / "out"
    status, _, err = run(capsys, "convert", base.folder, *gates, "--out", out, "--to", "hf,onnx")
    assert status == 0, err
    status, shown, err = run(capsys, "verify", base.folder, *gates, out, "--json")
    assert status == 0, err
    result = json.loads(shown)
    assert (result["engine"], result["passed"], result["tensors_equal"]) == ("onnx", True, True)
    compare = ("bench", "compare", base.folder, out, "--rounds", "1", "--prefill-tokens", "8")
    status, shown, err = run(capsys, *compare)
    assert status == 0, err
    # What follows depends on the speeds, but for the line on one round.
    starts = [line.split()[0] for line in shown.splitlines()]
    assert starts[:4] == ["phase", "batch_1", "batch_32", "one"]
    status, _, err = run(capsys, *compare, "--decode-steps", "2")
    message = "--decode-steps does not apply: these models read texts and decode nothing"
    assert (status, message in err) == (2, True)


def test_train_without_torch_names_the_extra(base: Checkpoint) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from sgate_serve.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["train", str(base.folder), "--data", "d.txt", "--out", "o", "--dry-run"]
    result = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert re.search(r'training needs torch, not installed here; run: .*\[train\]"', result.stderr)
    assert result.stderr.count("\n") == 1


def test_plots_name_the_extra_that_they_need(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, error = run(capsys, "inspect", base.folder, "--plot", base.folder / "w.png")
    assert status == 2
    assert re.search(r'needs matplotlib, not installed here; run: .*\[plot\]"', error)
