"""Entry points of the converter: make a plan, and write the folder that it describes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from converters.find_facts import model_facts
from converters.importers import read_gates
from converters.masked import MaskedCheckpoint
from converters.model_card import CARD_FILE, model_card
from converters.quantize import check_quantizable, why_not_quantizable
from converters.rewrite import Rewriter
from converters.rules import compile_plan
from converters.second_reading import check_with_transformers
from converters.sizes import find_sizes, ordered_gates
from converters.to_gguf import GGUF_FILE
from converters.to_hf import write_hf
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.writer import FolderWriter, new_folder
from sgate_serve.environment import EXTRAS, check_installed, cpu_flags
from sgate_serve.errors import GatesError, PlanError, did_you_mean
from sgate_serve.gates import gates_fingerprint
from sgate_serve.onnx_format.auto_precision import AUTO, chosen_precision
from sgate_serve.onnx_format.names import GRAPH_FILE, ONNX_DIR
from sgate_serve.onnx_format.precision import FP16, FP32, INT4, precision_named, suited_to
from sgate_serve.plan import Plan, Target
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.plan.sizes import SIZES_FILE, write_sizes

FormatWriter = Callable[[FolderWriter], None]

GGUF = "gguf"  # the format, and the extra that writes it
# The dtype that weights are rounded to. int8 and int4, and so auto, are made from the stored dtype.
PRECISIONS: Mapping[str, str | None] = {
    FP32: "F32",
    FP16: "F16",
    "bf16": "BF16",
    INT8: None,
    INT4: None,
    AUTO: None,
}
# The precision of the ONNX graph by --precision, else fp32: ONNX Runtime cannot multiply bf16 on
# CPUs.
GRAPH_PRECISIONS: Mapping[str | None, str] = {FP16: FP16, INT8: INT8, INT4: INT4}


@dataclass(frozen=True)
class ConvertOptions:
    """Arguments of `convert`: `to` lists the formats to write, `sizes` fractions to keep."""

    checkpoint: str
    out: Path
    gates: Path | None = None
    to: tuple[str, ...] = ("hf",)
    precision: str | None = None
    gates_kind: str | None = None
    target: Target | None = None
    index_price: int | None = None
    sizes: tuple[float, ...] = ()


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
    _check_formats(options)
    masked = open_masked(options.checkpoint, options.gates, options.precision, options.gates_kind)
    if options.sizes:
        ordered_gates(masked)
    _check_model(masked, options)
    if masked.base.layout is None:
        check_with_transformers(masked.base.folder)
    with new_folder(options.out) as writer:
        plan = make_plan(masked, options.target, options.index_price)
        plan = replace(plan, base_digest=masked.base.digest)
        options = _with_chosen_precision(options, pruned_spec(plan, masked.spec))
        sizes = find_sizes(masked, plan, options.sizes, options.index_price)
        formats = sorted(set(options.to))
        write_others = [FORMATS[name](masked, plan, options.precision) for name in formats]
        write_hf(writer, masked, plan, options.precision == INT8)
        if sizes:
            write_sizes(sizes, writer.path(SIZES_FILE))
        card = model_card(plan, masked.spec, options.precision, options.to)
        writer.path(CARD_FILE).write_text(card, encoding="utf-8")
        for write in write_others:
            write(writer)
    return plan


def _check_formats(options: ConvertOptions) -> None:
    """Raise PlanError for an unknown format, one without its package, or not for this precision."""
    unknown = sorted(set(options.to) - set(FORMATS))
    if unknown or not options.to:
        raise PlanError(
            f"--to {','.join(unknown)}: this release writes {', '.join(FORMATS)}"
            f"{did_you_mean(unknown[0] if unknown else '', FORMATS)}"
        )
    if options.precision == INT8 and options.sizes:
        raise PlanError(
            f"--sizes with --precision {INT8}: int8 rows are scaled by weights that a smaller size "
            f"lacks; convert without it, and serve with -- --precision {INT8}"
        )
    if options.precision == INT4 and not {"onnx", GGUF} & set(options.to):
        raise PlanError(
            f"--precision {INT4} exists only for the ONNX graph and GGUF, not for the HF layout; "
            "add --to hf,onnx or --to hf,gguf"
        )
    if options.precision == AUTO and "onnx" not in options.to:
        raise PlanError(
            f"--precision {AUTO} chooses the precision of the ONNX graph; add --to hf,onnx, or "
            f"give {INT8}"
        )
    if GGUF in options.to:
        check_installed("--to gguf needs", EXTRAS[GGUF], GGUF, PlanError)


def _check_model(masked: MaskedCheckpoint, options: ConvertOptions) -> None:
    """Raise SgateError if a format or the precision has no place for the model.

    That takes no time, and what transformers says of its config takes seconds.
    """
    if options.precision == INT8:
        check_quantizable(masked.spec.family)
    if GGUF in options.to:
        from converters.to_gguf.writer import check_model

        check_model(masked.spec, masked.base.folder)
    if "onnx" in options.to:
        from converters.to_onnx import check_layers

        check_layers(masked.spec, masked.base.folder)


def _with_chosen_precision(options: ConvertOptions, spec: ModelSpec) -> ConvertOptions:
    """Return the options with what `--precision auto` stands for on this machine.

    Raises PlanError if the model's only choice cannot be written with the other options.
    """
    if options.precision != AUTO:
        return options
    reason = f"--sizes excludes {INT8}" if options.sizes else why_not_quantizable(spec.family)
    chosen = replace(options, precision=chosen_precision(spec, without_int8=reason))
    _check_formats(chosen)
    return chosen


def _onnx(masked: MaskedCheckpoint, plan: Plan, precision: str | None) -> FormatWriter:
    """Return what writes the graph of the folder that is staged."""

    def write(writer: FolderWriter) -> None:
        from converters.to_onnx import write_onnx

        folder = writer.path(f"{ONNX_DIR}/{GRAPH_FILE}").parent
        model, name = Checkpoint.open(writer.staging), GRAPH_PRECISIONS.get(precision, FP32)
        held = precision_named(name, is_encoder=model.spec.is_encoder)
        write_onnx(model, folder, suited_to(held, cpu_flags()))

    return write


def _gguf(masked: MaskedCheckpoint, plan: Plan, precision: str | None) -> FormatWriter:
    """Return what writes the GGUF file; raise PlanError for a result that it cannot hold.

    It is made from the rewritten floats: the int8 of the HF layout would be rounded twice.
    """
    from converters.to_gguf.storage import STORAGES
    from converters.to_gguf.tensors import FileModel
    from converters.to_gguf.writer import write_gguf

    rewriter = Rewriter(masked, plan)
    model = FileModel.of(rewriter.small, STORAGES[precision], rewriter.tensor)
    return lambda writer: write_gguf(model, masked.base.folder, writer.path(GGUF_FILE))


# The HF layout is always written. Each entry raises what prevents a format before that.
FORMATS: Mapping[str, Callable[[MaskedCheckpoint, Plan, str | None], FormatWriter]] = {
    "hf": lambda masked, plan, precision: lambda writer: None,
    "onnx": _onnx,
    GGUF: _gguf,
}
