"""What a verification has found: the differences, causes first, and what it did not look at."""

from collections.abc import Iterator
from dataclasses import dataclass

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.table import ONNX
from sgate_serve.loaders.graph_cache import graph_precision, has_onnx
from sgate_serve.onnx_format.names import GRAPH_FILE, ONNX_DIR
from sgate_serve.onnx_format.precision import FP32
from sgate_serve.plan.sizes import read_sizes
from sgate_serve.verify.output_kind import output_kind
from sgate_serve.verify.outputs import Comparable, Outputs
from sgate_serve.verify.prompts import PromptSet, has_padding, reads_padding, unreached
from sgate_serve.verify.reading import Reading
from sgate_serve.verify.stored_parts import StoredParts
from sgate_serve.verify.stored_plan import PlanComparison

STORED = "stored tensors, config.json, tokenizer and settings files"


@dataclass(frozen=True)
class Findings:
    """What was found before any output: `no_plan` says why stored parts were not compared."""

    pair: Comparable
    no_plan: str | None
    prompts: PromptSet
    parts: StoredParts | None
    reading: Reading
    plan: PlanComparison | None = None

    @property
    def causes(self) -> list[str]:
        """Differences that explain other outputs."""
        found = [self.reading.difference]
        found += [] if self.parts is None else [self.parts.tensor, self.parts.config]
        return [difference for difference in found if difference is not None]

    def differences(self, outputs: Outputs) -> list[str]:
        """Return all differences: causes, then outputs, then what outputs do not show."""
        file = None if self.parts is None else self.parts.file
        excess = None if outputs.quantization is None else outputs.quantization.excess
        plan = None if self.plan is None else self.plan.difference
        others = [each for each in (plan, file, self.no_plan, excess) if each is not None]
        return [*self.causes, *outputs.differences, *others]

    def not_checked(self, outputs: Outputs) -> Iterator[str]:
        """Yield what the verdict does not cover."""
        if self.no_plan is not None:
            yield f"{STORED}: there is no plan"
        elif self.parts is None:
            yield f"{STORED}: the base is compared with itself, and gets no certificate"
        if self.plan is not None:
            yield from self.plan.not_compared
        if self.reading.not_compared is not None:
            yield self.reading.not_compared
        if outputs.compared.num_tokens:
            yield from self._not_compared(outputs)
        elif outputs.graph.is_equal is None:
            yield "outputs, the ONNX graph and the cost of rounding"
        else:
            yield f"any outputs: {self.prompts.engine} does not run the graph"
        if sizes := read_sizes(self.pair.out.folder):
            named = ", ".join(f"--keep {size.keep:g}" for size in sizes)
            yield f"smaller sizes, each of which is verified by its own {named}"
        if self.parts is not None and self.parts.other_files:
            yield f"files that no conversion writes: {', '.join(self.parts.other_files)}"

    def _not_compared(self, outputs: Outputs) -> Iterator[str]:
        """Yield the outputs that were not compared, while others were."""
        out, engine = self.pair.out, self.prompts.engine
        yield from unreached(out.spec, self.prompts.all)
        if has_padding(out) and not reads_padding(out, engine):
            yield f"padding ids inside texts, which {engine} does not treat as transformers does"
        yield from _unshown(outputs, out)
        if outputs.batch is None:
            yield "several texts in one batch"
        yield f"outputs on other engines than {engine}"
        if engine != ONNX and has_onnx(out) and graph_precision(out).name != FP32:
            yield f"the cost of rounding in {ONNX_DIR}/{GRAPH_FILE} (--engine {ONNX})"
        if outputs.quantization is not None and self.prompts.data is None:
            yield "the cost of rounding on real text (--data FILE)"


def _unshown(outputs: Outputs, out: Checkpoint) -> Iterator[str]:
    """Yield what equal outputs do not show: values near zero, and choices that are mostly ties."""
    compared, kind = outputs.compared, output_kind(out.spec)
    if compared.scale <= compared.tolerance:
        yield (
            f"a difference of outputs: all are within the tolerance of zero ({compared.scale:.1e})"
        )
    if compared.rerouted:
        yield (
            f"{compared.rerouted} tokens after a choice among experts that is closer than rounding "
            "and went the other way"
        )
    if kind.choice is not None and 2 * compared.undecided > compared.num_tokens:
        yield (
            f"{kind.choice}, mostly: in {compared.undecided} of {compared.num_tokens} the best two "
            "logits are as close as in a tie"
        )
