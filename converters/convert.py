"""Entry points of the converter: make a plan, and write the folder that it describes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from converters.find_facts import model_facts
from converters.importers import read_gates
from converters.masked import MaskedCheckpoint
from converters.model_card import CARD_FILE, model_card
from converters.quantize import check_quantizable
from converters.rules import compile_plan
from converters.second_reading import check_with_transformers
from converters.to_hf import write_hf
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.writer import FolderWriter, new_folder
from sgate_serve.errors import GatesError, PlanError, did_you_mean
from sgate_serve.gates import gates_fingerprint
from sgate_serve.onnx_format.names import GRAPH_FILE, ONNX_DIR
from sgate_serve.onnx_format.precision import FP16, FP32, INT4, precision_named
from sgate_serve.plan import Plan, Target

# The dtype that weights are rounded to. int8 and the int4 graph are made from the stored dtype.
PRECISIONS: Mapping[str, str | None] = {
    FP32: "F32",
    FP16: "F16",
    "bf16": "BF16",
    INT8: None,
    INT4: None,
}
# The precision of the ONNX graph by --precision, else fp32: ONNX Runtime cannot multiply bf16 on
# CPUs.
GRAPH_PRECISIONS: Mapping[str | None, str] = {FP16: FP16, INT8: INT8, INT4: INT4}


@dataclass(frozen=True)
class ConvertOptions:
    """Arguments of `convert`; `to` lists the formats to write."""

    checkpoint: str
    out: Path
    gates: Path | None = None
    to: tuple[str, ...] = ("hf",)
    precision: str | None = None
    gates_kind: str | None = None
    target: Target | None = None
    index_price: int | None = None


def open_masked(
    checkpoint: str | Path,
    gates: Path | None,
    precision: str | None = None,
    gates_kind: str | None = None,
    *,
    whole_base: bool = True,
) -> MaskedCheckpoint:
    """Open a base with its gates, of any kind that `converters.importers` reads.

    Raises SgateError if either is malformed or they do not match. Without `whole_base` the match is
    judged by names, shapes and fingerprint, so that little of a large base is read.
    """
    if precision is not None and precision not in PRECISIONS:
        raise PlanError(
            f"--precision {precision}: this release writes {', '.join(PRECISIONS)}"
            f"{did_you_mean(precision, PRECISIONS)}"
        )
    dtype = None if precision is None else PRECISIONS[precision]
    if gates is None and gates_kind is not None:
        raise GatesError(f"--gates-kind {gates_kind} without --gates; name the gates as well")
    base = Checkpoint.open(checkpoint)
    base.check_unquantized()
    if gates is None:
        return MaskedCheckpoint(base, None, dtype)
    read = read_gates(gates, base, gates_kind, whole_base=whole_base)
    return MaskedCheckpoint(base, read, dtype)


def make_plan(
    masked: MaskedCheckpoint, target: Target | None = None, index_price: int | None = None
) -> Plan:
    """Decide what to remove; without gates, scan the weights for zeros."""
    plan = compile_plan(model_facts(masked), masked.base.fingerprint, target, index_price)
    gates = "" if masked.gates is None else gates_fingerprint(masked.gates)
    return replace(plan, gates_fingerprint=gates)


def convert(options: ConvertOptions) -> Plan:
    """Write the deployable folder, completely or not at all, and return its plan.

    Raises SgateError before anything is written if an input is malformed or `out` is not empty.
    """
    unknown = sorted(set(options.to) - set(WRITERS))
    if unknown or not options.to:
        raise PlanError(
            f"--to {','.join(unknown)}: this release writes {', '.join(WRITERS)}"
            f"{did_you_mean(unknown[0] if unknown else '', WRITERS)}"
        )
    if options.precision == INT4 and "onnx" not in options.to:
        raise PlanError(
            f"--precision {INT4} exists only for the ONNX graph, not for the HF layout; add "
            "--to hf,onnx"
        )
    is_int8 = options.precision == INT8
    masked = open_masked(options.checkpoint, options.gates, options.precision, options.gates_kind)
    if masked.base.layout is None:
        check_with_transformers(masked.base.folder)
    if is_int8:
        check_quantizable(masked.spec.family)
    with new_folder(options.out) as writer:
        plan = make_plan(masked, options.target, options.index_price)
        plan = replace(plan, base_digest=masked.base.digest)
        write_hf(writer, masked, plan, is_int8)
        card = model_card(plan, masked.spec, options.precision)
        writer.path(CARD_FILE).write_text(card, encoding="utf-8")
        for target in sorted(set(options.to)):
            WRITERS[target](writer, options.precision)
    return plan


def _write_onnx(writer: FolderWriter, precision: str | None) -> None:
    from converters.to_onnx import write_onnx

    folder = writer.path(f"{ONNX_DIR}/{GRAPH_FILE}").parent
    model, name = Checkpoint.open(writer.staging), GRAPH_PRECISIONS.get(precision, FP32)
    write_onnx(model, folder, precision_named(name, is_encoder=model.spec.is_encoder))


# The HF layout is always written: the other formats are derived from it, in the same folder.
WRITERS: Mapping[str, Callable[[FolderWriter, str | None], None]] = {
    "hf": lambda writer, precision: None,
    "onnx": _write_onnx,
}
