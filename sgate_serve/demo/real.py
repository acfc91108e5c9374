"""The demonstration on a real model: SmolLM2 is pruned, served in int8, and asked beside itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.convert import ConvertOptions, convert
from sgate_serve.bench.comparison import comparison_lines
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.demo.real_text import ASKED, HELD_OUT_CHAT, HELD_OUT_TEXT, TEXT_FILE, write_text
from sgate_serve.demo.serving import ask, running_server
from sgate_serve.demo.sizes import RealSizes
from sgate_serve.demo.smollm2 import write_smollm2
from sgate_serve.demo.stages import (
    COMPARE_FILE,
    COMPARE_PLOT,
    PERPLEXITY_FILE,
    SERVED_FILE,
    Stage,
    compare_in,
    page_of,
    verify_on,
    write_json,
)
from sgate_serve.gates import GATES_FILE
from sgate_serve.json_fields import read_json
from sgate_serve.progress import activity
from sgate_serve.reports.evaluation import EvalOptions, evaluate
from sgate_serve.reports.inspection import Inspection
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.verify.certificate import CERTIFICATE_FILE

# Both are int8, so that they differ in what was removed alone.
SERVED = {"dense": "dense-int8", "pruned": "pruned"}
HELD_OUT_FILES = {"help topics": HELD_OUT_TEXT, "own chats": HELD_OUT_CHAT}


@dataclass(frozen=True)
class RealDemo:
    """One demonstration: its folder, its sizes, and a method for each stage."""

    folder: Path
    sizes: RealSizes

    @property
    def stages(self) -> list[Stage]:
        at = self.folder
        return [
            Stage("unpack SmolLM2-135M-Instruct", at / "dense" / SINGLE_FILE, self.unpack),
            Stage("the dense model in int8", at / "dense-int8" / SINGLE_FILE, self.quantize),
            Stage("text and the model's own chats", at / "corpus" / TEXT_FILE, self.make_text),
            Stage("prune and recover", at / "gates" / GATES_FILE, self.prune),
            Stage("convert to int8 HF and ONNX", at / "pruned" / SINGLE_FILE, self.convert),
            Stage("verify on onnx", at / "pruned" / CERTIFICATE_FILE, self.verify),
            Stage("held-out perplexity", at / PERPLEXITY_FILE, self.measure_perplexity),
            Stage("serve both and ask", at / SERVED_FILE, self.serve),
            Stage("compare speed", at / COMPARE_FILE, self.compare),
        ]

    def unpack(self) -> None:
        with activity("dequantizing", is_brief=True):
            write_smollm2(self.folder / "dense")

    def quantize(self) -> None:
        self._convert("dense-int8", None)

    def make_text(self) -> None:
        dense, log = self.folder / "dense", self.folder / "chats.log"
        with (
            running_server(self.folder / "dense-int8", log) as url,
            activity("the model writes chats"),
            new_folder(self.folder / "corpus") as writer,
        ):
            write_text(writer, dense, url, self.sizes)

    def prune(self) -> None:
        out, sizes = self.folder / "gates", self.sizes
        train(
            TrainOptions(
                base=str(self.folder / "dense"),
                data=self.folder / "corpus" / TEXT_FILE,
                eval_data=tuple(self.folder / "corpus" / file for file in HELD_OUT_FILES.values()),
                # It would take as long as the recovery.
                no_control=True,
                out=out,
                target=sizes.target,
                steps=sizes.steps,
                batch_size=sizes.batch_size,
                seq_len=sizes.seq_len,
                eval_blocks=sizes.eval_blocks,
                seed=sizes.seed,
                resume=run_dir_of(out).exists(),
            )
        )

    def convert(self) -> None:
        self._convert("pruned", self.folder / "gates")

    def _convert(self, name: str, gates: Path | None) -> None:
        with activity("converting", is_brief=True):
            convert(
                ConvertOptions(
                    checkpoint=str(self.folder / "dense"),
                    gates=gates,
                    out=self.folder / name,
                    to=("hf", "onnx"),
                    precision=INT8,
                )
            )

    def verify(self) -> None:
        verify_on("onnx", self.folder)

    def measure_perplexity(self) -> None:
        values: dict[str, dict[str, float]] = {}
        for kind, file in HELD_OUT_FILES.items():
            for model, name in SERVED.items():
                options = EvalOptions(
                    checkpoint=str(self.folder / name),
                    data=self.folder / "corpus" / file,
                    seq_len=self.sizes.seq_len,
                    eval_blocks=self.sizes.eval_blocks,
                )
                with activity(f"{kind}, {model}", is_brief=True):
                    score = evaluate(options).scores["perplexity"]
                values.setdefault(kind, {})[model] = score.value
        write_json(self.folder / PERPLEXITY_FILE, values)

    def serve(self) -> None:
        answers: dict[str, dict[str, str]] = {prompt: {} for prompt in ASKED}
        for model, name in SERVED.items():
            with running_server(self.folder / name, self.folder / f"serve-{model}.log") as url:
                found = ask(url, ASKED, self.sizes.max_tokens)
            for prompt, answer in zip(ASKED, found, strict=True):
                answers[prompt][model] = answer.text
        write_json(self.folder / SERVED_FILE, answers)

    def compare(self) -> None:
        sizes = self.sizes
        models = (self.folder / SERVED["dense"], self.folder / SERVED["pruned"])
        workload = Workload(sizes.rounds, sizes.decode_steps, seed=sizes.seed)
        compare_in(self.folder, models, workload, COMPARE_FILE, COMPARE_PLOT)


def make_report(folder: Path) -> dict[str, Any]:
    """Combine the stages' records into `report.json`."""
    inspection = Inspection.of(folder / "pruned").to_json()
    comparison = read_json(folder / COMPARE_FILE)
    certificate = read_json(folder / "pruned" / CERTIFICATE_FILE)
    models = {model: Checkpoint.open(folder / name) for model, name in SERVED.items()}
    return {
        "removed": inspection["removed"],
        "removed_overall": inspection["removed_overall"],
        "parameters": {model: found.spec.num_parameters for model, found in models.items()},
        "bytes": {model: found.num_bytes for model, found in models.items()},
        "perplexity": read_json(folder / PERPLEXITY_FILE),
        "verification": {key: certificate[key] for key in ("engine", "engine_version", "passed")},
        "served": read_json(folder / SERVED_FILE),
        "speedups": comparison["speedups"],
        "floor": comparison["floor"],
        "comparison": comparison,
    }


def lines(folder: Path, report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as lines of text."""
    sizes = report["bytes"]
    yield ""
    yield (
        f"removed          {report['removed']:.1%} of the block linears, "
        f"{report['removed_overall']:.1%} of all parameters"
    )
    yield f"bytes, int8      {sizes['dense']:,} dense, {sizes['pruned']:,} pruned"
    for kind, values in report["perplexity"].items():
        yield (
            f"perplexity       {values['dense']:.2f} dense, {values['pruned']:.2f} pruned "
            f"on held-out {kind}"
        )
    for prompt, answers in report["served"].items():
        yield ""
        yield prompt
        for model, text in answers.items():
            yield f"  {model:<8}{' '.join(text.split())}"
    yield ""
    yield "speed in int8:"
    yield from comparison_lines(report["comparison"])
    yield ""
    # Earlier releases wrote no page.
    if "explanation" in report["comparison"]:
        yield f"where the time goes: {page_of(folder / COMPARE_FILE)}"
    yield f"report: {folder / 'report.json'}; serve it: sgate serve {folder / 'pruned'}"
