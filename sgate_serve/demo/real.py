"""`sgate demo --real`: SmolLM2-135M-Instruct is pruned, verified, and asked beside the dense model.

It recovers on sources of Python's standard library and on chats that the dense model answered.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.convert import ConvertOptions, convert
from sgate_serve.bench.compare import compare, comparison_lines
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.demo.corpus import EVAL_FILE, TRAIN_FILE, is_held_out, read_sources
from sgate_serve.demo.serving import ask, running_server
from sgate_serve.demo.smollm2 import find_smollm2, write_smollm2
from sgate_serve.demo.stages import COMPARE_FILE, Stage, say, verify_on, write_json
from sgate_serve.gates import GATES_FILE
from sgate_serve.json_fields import read_json
from sgate_serve.progress import activity
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.verify.certificate import CERTIFICATE_FILE

CHATS_FILE, ANSWERS_FILE = "chats.jsonl", "answers.json"
TARGET, STEPS = 0.2, 60
NUM_TOKENS = 64
# The dense model's answers to these are text to recover on; every eighth is only measured on.
SUBJECTS = (
    "the sun", "bread", "a bicycle", "rain", "music", "the heart", "a library", "iron", "winter",
    "a river", "trees", "bees", "money", "sleep", "the moon", "glass", "a computer", "salt",
    "a city", "horses", "paper", "light", "a map", "fire",
)  # fmt: skip
ORDERS = ("What is {}?", "Tell me something interesting about {}.")
STAGES = ("dense", "masked", "recovered")
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three fruits.",
    "How do I read a file line by line in Python?",
)


@dataclass(frozen=True)
class RealDemo:
    """The stages of one demonstration in `folder`, each skipped if its result exists."""

    folder: Path

    @property
    def stages(self) -> list[Stage]:
        at = self.folder
        return [
            Stage("SmolLM2-135M as a model folder", at / "dense" / SINGLE_FILE, self.write_dense),
            Stage("text to recover on", at / "corpus" / TRAIN_FILE, self.make_corpus),
            Stage("choose, cut, refit and recover", at / "gates" / GATES_FILE, self.train_gates),
            Stage("convert to HF and ONNX", at / "pruned" / SINGLE_FILE, self.convert),
            Stage("verify on onnx", at / "pruned" / CERTIFICATE_FILE, self.verify),
            Stage("serve both and ask", at / ANSWERS_FILE, self.ask),
            Stage("compare speed", at / COMPARE_FILE, self.compare),
        ]

    def write_dense(self) -> None:
        with activity("dequantizing the weights", is_brief=True):
            write_smollm2(self.folder / "dense")

    def make_corpus(self) -> None:
        """Write the library's sources, and chats in the form of the model's template."""
        from sgate_serve.demo.chats import answered_chats

        prompts = [order.format(subject) for order in ORDERS for subject in SUBJECTS]
        chats = answered_chats(self.folder / "dense", prompts, NUM_TOKENS)
        sources = [text for _, text in read_sources()]
        parts = {
            TRAIN_FILE: [text for text in sources if not is_held_out(text)]
            # As often as makes them a tenth of the text or so.
            + [chat for index, chat in enumerate(chats) if index % 8] * 16,
            EVAL_FILE: [text for text in sources if is_held_out(text)],
            CHATS_FILE: chats[::8],
        }
        with new_folder(self.folder / "corpus") as writer:
            for name, texts in parts.items():
                lines = (json.dumps({"text": text}) + "\n" for text in texts)
                writer.path(name).write_text("".join(lines), encoding="utf-8")
            writer.last = [TRAIN_FILE]

    def train_gates(self) -> None:
        out, corpus = self.folder / "gates", self.folder / "corpus"
        train(
            TrainOptions(
                base=str(self.folder / "dense"),
                data=corpus / TRAIN_FILE,
                eval_data=(corpus / EVAL_FILE, corpus / CHATS_FILE),
                out=out,
                target=TARGET,
                steps=STEPS,
                batch_size=2,
                eval_blocks=16,
                # It would take as long as the recovery.
                no_control=True,
                resume=run_dir_of(out).exists(),
            )
        )

    def convert(self) -> None:
        dense, pruned = self.folder / "dense", self.folder / "pruned"
        with activity("converting", is_brief=True):
            convert(ConvertOptions(str(dense), pruned, self.folder / "gates", to=("hf", "onnx")))

    def verify(self) -> None:
        verify_on("onnx", self.folder)

    def ask(self) -> None:
        answers = {}
        for name in ("dense", "pruned"):
            log = self.folder / f"serve-{name}.log"
            asking = activity(f"asking the {name} model", is_brief=True)
            with running_server(self.folder / name, log) as url, asking:
                answers[name] = ask(url, QUESTIONS, NUM_TOKENS)
        write_json(self.folder / ANSWERS_FILE, answers)

    def compare(self) -> None:
        dense, pruned = (Checkpoint.open(self.folder / name) for name in ("dense", "pruned"))
        with activity("comparing", is_brief=True):
            result = compare(dense, pruned, "onnx", Workload(rounds=3, decode_steps=8))
        write_json(self.folder / COMPARE_FILE, result.to_json())

    def report_lines(self) -> Iterator[str]:
        metrics = read_json(self.folder / "gates" / "metrics.json")
        yield ""
        yield (
            f"removed          {metrics['removed']:.1%} of the block linears, "
            f"{metrics['removed_overall']:.1%} of all parameters"
        )
        texts = {"sources": metrics["scores"], **metrics["scores_elsewhere"]}
        for name, stages in texts.items():
            values = (stages[stage]["perplexity"]["value"] for stage in STAGES)
            shown = ", ".join(f"{v:.1f} {s}" for v, s in zip(values, STAGES, strict=True))
            yield f"{'perplexity':<17}{name}: {shown}"
        yield from answer_lines(read_json(self.folder / ANSWERS_FILE))
        yield ""
        yield from comparison_lines(read_json(self.folder / COMPARE_FILE))
        yield ""
        yield f"serve it: sgate serve {self.folder / 'pruned'}"


def answer_lines(answers: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield each question with the answer of both models."""
    for question in QUESTIONS:
        yield ""
        yield question
        for name in ("dense", "pruned"):
            yield f"  {name:<8}{' '.join(answers[name][question].split())}"


def real_demo(folder: Path) -> None:
    """Run every stage that is not done yet, and print the results."""
    from sgate_serve.demo.walkthrough import quiet_logs, run_stages
    from sgate_serve.training.quiet import quiet_libraries

    demo = RealDemo(folder)
    find_smollm2()
    with quiet_libraries(), quiet_logs():
        run_stages(demo.stages)
    for line in demo.report_lines():
        say(line)
