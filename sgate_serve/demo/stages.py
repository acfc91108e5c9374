"""The stages of the demonstration, each skipped if its result exists."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.convert import ConvertOptions, convert
from sgate_serve.bench.compare import ComparisonRun
from sgate_serve.bench.explain import explain
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder, replace_text
from sgate_serve.demo.corpus import (
    END_TOKEN,
    EVAL_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TRAIN_FILE,
    write_corpus,
)
from sgate_serve.demo.serving import running_server, stream_answers
from sgate_serve.demo.shape import write_shape, write_shape_gates
from sgate_serve.demo.sizes import DemoSizes
from sgate_serve.errors import EngineError
from sgate_serve.gates import GATES_FILE
from sgate_serve.plan import PLAN_FILE
from sgate_serve.plan.json_form import read_plan
from sgate_serve.progress import activity
from sgate_serve.reports.pages import write_report
from sgate_serve.reports.plots import plot_comparison
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.verify.certificate import CERTIFICATE_FILE
from sgate_serve.verify.verify_options import VerifyOptions

SERVED_FILE = "served.json"
PERPLEXITY_FILE = "perplexity.json"
COMPARE_FILE, COMPARE_PLOT = "compare.json", "compare.png"
SHAPE_COMPARE_FILE, SHAPE_COMPARE_PLOT = "shape-compare.json", "shape-compare.png"


@dataclass(frozen=True)
class Stage:
    """One stage: its title, the file that it writes last, and the function that runs it."""

    title: str
    result: Path
    run: Callable[[], None]

    @property
    def is_done(self) -> bool:
        return self.result.exists()


@dataclass(frozen=True)
class Demo:
    """One demonstration: its folder, its sizes, and a method for each stage."""

    folder: Path
    sizes: DemoSizes

    @property
    def stages(self) -> list[Stage]:
        at = self.folder
        return [
            Stage("corpus and tokenizer", at / "corpus" / TRAIN_FILE, self.make_corpus),
            Stage("train the dense model", at / "dense" / SINGLE_FILE, self.train_dense),
            Stage("train gates and recover", at / "gates" / GATES_FILE, self.train_gates),
            Stage("convert to HF and ONNX", at / "pruned" / SINGLE_FILE, self.convert),
            Stage("verify on torch and onnx", at / "pruned" / CERTIFICATE_FILE, self.verify),
            Stage("held-out perplexity", at / PERPLEXITY_FILE, self.measure_perplexity),
            Stage("serve and ask", at / SERVED_FILE, self.serve),
            Stage("compare speed", at / COMPARE_FILE, self.compare),
            Stage("make the larger shape", at / "shape/pruned" / SINGLE_FILE, self.make_shape),
            Stage("compare the larger shape", at / SHAPE_COMPARE_FILE, self.compare_shape),
        ]

    def make_corpus(self) -> None:
        reading = activity("reading the library and training a tokenizer", is_brief=True)
        with reading, new_folder(self.folder / "corpus") as writer:
            write_corpus(writer, self.sizes)

    def train_dense(self) -> None:
        from sgate_serve.data.documents import read_documents
        from sgate_serve.training.pretrain import LlamaSizes, PretrainOptions, pretrain

        corpus, sizes = self.folder / "corpus", self.sizes
        pretrain(
            PretrainOptions(
                out=self.folder / "dense",
                documents=read_documents(corpus / TRAIN_FILE),
                tokenizer_files=[corpus / TOKENIZER_FILE, corpus / TOKENIZER_CONFIG_FILE],
                end_token=END_TOKEN,
                sizes=LlamaSizes(
                    sizes.hidden, sizes.layers, sizes.heads, sizes.kv_heads, sizes.mlp_units
                ),
                steps=sizes.pretrain_steps,
                batch_size=sizes.pretrain_batch_size,
                seq_len=sizes.seq_len,
                seed=sizes.seed,
            )
        )

    def train_gates(self) -> None:
        out, sizes = self.folder / "gates", self.sizes
        train(
            TrainOptions(
                base=str(self.folder / "dense"),
                data=self.folder / "corpus" / TRAIN_FILE,
                eval_data=(self.folder / "corpus" / EVAL_FILE,),
                precision="fp32",
                no_control=True,
                out=out,
                target=sizes.target,
                method="gates",
                steps=sizes.gate_steps,
                batch_size=sizes.batch_size,
                seq_len=sizes.seq_len,
                eval_blocks=sizes.eval_blocks,
                seed=sizes.seed,
                resume=run_dir_of(out).exists(),
            )
        )

    def convert(self) -> None:
        options = ConvertOptions(
            checkpoint=str(self.folder / "dense"),
            gates=self.folder / "gates",
            out=self.folder / "pruned",
            to=("hf", "onnx"),
        )
        with activity("converting", is_brief=True):
            convert(options)

    def verify(self) -> None:
        """Verify on both engines; keep the certificate of the one that serves."""
        verify_on("torch", self.folder)
        verify_on("onnx", self.folder)

    def measure_perplexity(self) -> None:
        from sgate_serve.demo.perplexity import held_out_perplexity

        data, values = self.folder / "corpus" / EVAL_FILE, {}
        for name in ("dense", "pruned"):
            with activity(f"measuring the {name} model"):
                values[name] = held_out_perplexity(self.folder / name, data, self.sizes)
        write_json(self.folder / PERPLEXITY_FILE, values)

    def serve(self) -> None:
        with running_server(self.folder / "pruned", self.folder / "serve.log") as url:
            answers = stream_answers(url, self.sizes.max_tokens, _show)
        write_json(self.folder / SERVED_FILE, answers)

    def compare(self) -> None:
        workload = Workload(
            rounds=self.sizes.rounds, decode_steps=self.sizes.decode_steps, seed=self.sizes.seed
        )
        self._compare(self.folder, workload, COMPARE_FILE, COMPARE_PLOT)

    def make_shape(self) -> None:
        root = self.folder / "shape"
        # Remove the remains of an interrupted attempt; random weights are quick to make again.
        shutil.rmtree(root, ignore_errors=True)
        with activity("writing random weights", is_brief=True):
            write_shape(root / "dense", self.sizes)
        trained = read_plan(self.folder / "pruned" / PLAN_FILE)
        base = Checkpoint.open(root / "dense")
        write_shape_gates(base, trained, root / "gates", self.sizes.seed)
        with activity("converting", is_brief=True):
            convert(ConvertOptions(str(root / "dense"), root / "pruned", root / "gates"))

    def compare_shape(self) -> None:
        workload = Workload(
            rounds=self.sizes.shape_rounds,
            decode_steps=self.sizes.shape_decode_steps,
            seed=self.sizes.seed,
        )
        self._compare(self.folder / "shape", workload, SHAPE_COMPARE_FILE, SHAPE_COMPARE_PLOT)

    def _compare(self, models: Path, workload: Workload, record: str, plot: str) -> None:
        folders = (models / "dense", models / "pruned")
        compare_in(self.folder, folders, workload, record, plot)


def compare_in(
    folder: Path, models: tuple[Path, Path], workload: Workload, record: str, plot: str
) -> None:
    """Compare the dense and the pruned model on onnx; write record, plot and page to `folder`."""
    dense, pruned = map(Checkpoint.open, models)
    run = ComparisonRun(dense, pruned, "onnx", workload)
    with activity("comparing", is_brief=True):
        run.measure()
    result = run.result()
    plot_comparison(result, folder / plot)
    whole = result.to_json() | {"explanation": explain(run, result)}
    write_report(whole, page_of(folder / record))
    write_json(folder / record, whole)


def page_of(record: Path) -> Path:
    """Return the path of the page beside a comparison's record."""
    return record.with_suffix(".html")


def verify_on(engine: str, folder: Path) -> None:
    """Verify the pruned model of a demonstration, and write its certificate.

    Raises EngineError if it differs from the masked one.
    """
    from sgate_serve.verify.verification import verify

    pruned = folder / "pruned"
    options = VerifyOptions(str(folder / "dense"), str(pruned), folder / "gates", engine)
    with activity(f"verifying on {engine}", is_brief=True):
        result = verify(options)
    for line in result.lines():
        say(f"  {line}")
    if not result.passed:
        raise EngineError(f"{pruned} differs from the masked model: {result.difference}")
    result.write(pruned)


def say(text: str) -> None:
    print(text, flush=True)


def write_json(path: Path, value: Any) -> None:
    """Write a stage's record atomically, as its presence means that the stage is done."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
