"""The content of a model folder: widths per layer, bytes, predicted speedup, certificate."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.to_gguf import GGUF_FILE
from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.ideal import ideal_speedup
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import PRECISION_NAMES
from sgate_serve.loaders.graph_cache import graph_precision, has_onnx
from sgate_serve.loaders.sized_folder import open_size
from sgate_serve.onnx_format.names import (
    GRAPH_FILE,
    META_BLOCK,
    META_IN_ROWS,
    ONNX_DIR,
    WEIGHTS_FILE,
    format_in_words,
    stored_text,
)
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.figures import Figures
from sgate_serve.plan.json_form import read_plan
from sgate_serve.plan.placement import dense_spec
from sgate_serve.plan.sizes import SIZES_FILE, Size, check_size, read_sizes
from sgate_serve.plan.targets import alignment_advice
from sgate_serve.verify.certificate import (
    CERTIFICATE_FILE,
    certificate_line,
    is_current,
    read_certificate,
)

PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Inspection:
    """A folder with its plan, its certificate and its smaller sizes, if it has them."""

    folder: Checkpoint
    plan: Plan | None
    certificate: dict[str, Any] | None
    sizes: tuple[Size, ...] = ()
    # Of a smaller size: the folder that it was sliced out of, and the fraction that it keeps.
    sliced: tuple[str, float] | None = None

    @classmethod
    def of(cls, location: str | Path, keep: float | None = None) -> "Inspection":
        """Read a folder, or a smaller size of it.

        Raises SgateError if it, its plan or its certificate is malformed.
        """
        checkpoint = open_size(location, keep)
        plan_path = checkpoint.folder / PLAN_FILE
        certificate_path = checkpoint.folder / CERTIFICATE_FILE
        plan = _read_plan(plan_path, checkpoint.spec) if plan_path.exists() else None
        return cls(
            folder=checkpoint,
            plan=plan,
            certificate=read_certificate(certificate_path) if certificate_path.exists() else None,
            sizes=() if plan is None else _read_sizes(checkpoint, plan),
            sliced=None if keep is None else (str(location), keep),
        )

    @property
    def certificate_is_current(self) -> bool | None:
        """Say whether the certificate is about the folder as it is now; None without one."""
        return None if self.certificate is None else is_current(self.certificate, self.folder)

    def to_json(self) -> dict[str, Any]:
        spec = self.folder.spec
        report: dict[str, Any] = {
            "family": spec.family.name,
            "model_type": self.folder.config["model_type"],
            "fingerprint": self.folder.fingerprint,
            "layout": self.folder.layout,
            "precision": precision(self.folder),
            "parameters": spec.num_parameters,
            "bytes_stored": self.folder.num_bytes,
            "onnx": _graph(self.folder),
            "gguf": _gguf(self.folder),
            # For models other than causal LMs, the bytes of one forward pass.
            "bytes_per_decode_step": bytes_per_step(self.folder),
            "layers": [
                {
                    "mlp_units": layer.mlp_units,
                    "heads": layer.num_heads,
                    "kv_heads": layer.num_kv_heads,
                    "head_dim": layer.head_dim,
                    **({"recurrent": True} if layer.is_recurrent else {}),
                    **_experts(layer),
                }
                for layer in spec.layers
            ],
            "sizes": [],
            "certificate": self.certificate,
            "certificate_is_current": self.certificate_is_current,
        }
        if self.plan is not None:
            dense = dense_spec(self.plan, spec, PLAN_FILE)
            figures = Figures.of(self.plan, dense)
            # Both models in the precision of the folder's graph, or of the one it would get.
            own = graph_precision(self.folder)
            ideal = ideal_speedup(dense, spec, PREFILL_TOKENS, (own, own))
            report |= {
                **figures.headline(),
                "figures": vars(figures),
                "sizes": [_size(size, dense) for size in self.sizes],
                "predicted_speedup": {
                    **({"decode": ideal.decode} if spec.task == CAUSAL_LM else {}),
                    "prefill": ideal.prefill,
                },
            }
        return report

    @property
    def _title(self) -> str:
        if self.sliced is None:
            return str(self.folder.folder)
        return "{}, size {:g}, in {}".format(*self.sliced, self.folder.folder)

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        report = self.to_json()
        kind = report["layout"] or f"model_type {report['model_type']}"
        yield f"{self._title}: {report['family']} family, {kind}"
        yield (
            f"{report['parameters']:,} parameters, {report['precision']}, "
            f"{report['bytes_stored']:,} bytes stored, "
            f"{report['bytes_per_decode_step']:,} read per step"
        )
        if report["onnx"] is not None:
            yield _graph_line(report["onnx"])
        if report["gguf"] is not None:
            yield f"GGUF: {report['gguf']['bytes']:,} bytes"
        yield f"{'layer':>5}  {'MLP units':>9}  {'heads':>5}  {'KV heads':>8}  {'head dim':>8}"
        for index, layer in enumerate(report["layers"]):
            yield (
                f"{index:>5}  {layer['mlp_units']:>9}  {layer['heads']:>5}  "
                f"{layer['kv_heads']:>8}  {layer['head_dim']:>8}{_in_words(layer)}"
            )
        if self.plan is not None:
            speedups = report["predicted_speedup"].items()
            yield (
                f"removed {report['removed']:.1%} of the block linears, "
                f"{report['removed_overall']:.1%} of all parameters; ideal speedup "
                f"{', '.join(f'{phase} {ratio:.2f}x' for phase, ratio in speedups)}"
            )
            figures = report["figures"]
            yield (
                f"closed {figures['naive']:.1%}, dead {figures['compiled']:.1%}, without index "
                f"work {figures['index_free']:.1%}, not executed {figures['executed']:.1%}"
            )
            if figures["revived"]:
                yield f"dead but revived for a width {figures['revived']:.1%}"
            advice = alignment_advice(self.plan)
            if advice is not None:
                yield advice
        yield from map(size_line, report["sizes"])
        if self.plan is None and self.certificate is None:
            yield "not converted yet: run `sgate convert THIS_FOLDER [--gates G] --out OUT`"
        elif self.sliced is None:
            yield certificate_line(self.certificate)
        else:
            yield certificate_line(self.certificate, "{} --keep {:g}".format(*self.sliced))
        if self.certificate_is_current is False:
            yield (
                "edited since then: config.json, weights, tokenizer or settings files or the graph "
                "are not those of the certificate"
            )


def size_line(size: Mapping[str, Any]) -> str:
    """Return a size of a report as a line of text."""
    return (
        f"--keep {size['keep']:g}: removed {size['removed']:.1%} of the block linears, "
        f"{size['removed_overall']:.1%} of all parameters"
    )


def _size(size: Size, dense: ModelSpec) -> dict[str, float]:
    return {"keep": size.keep, **Figures.of(size.plan, dense).headline()}


def _experts(layer: LayerShape) -> dict[str, Any]:
    if not layer.experts:
        return {}
    shared = {"shared_expert_units": layer.shared_units} if layer.shared_units else {}
    return {"expert_units": list(layer.experts), "experts_per_token": layer.top_k} | shared


def _in_words(layer: Mapping[str, Any]) -> str:
    """Say whether a layer is recurrent, and how many experts its units belong to."""
    recurrent = "  recurrent" if "recurrent" in layer else ""
    if "expert_units" not in layer:
        return recurrent
    widths = layer["expert_units"]
    least, most = min(widths), max(widths)
    units = f"{most}" if least == most else f"{least} to {most}"
    shared = ", and a shared one" if "shared_expert_units" in layer else ""
    experts = f"{len(widths)} expert{'s' if len(widths) > 1 else ''}"
    return f"{recurrent}  {experts} of {units} units, {layer['experts_per_token']} a token{shared}"


def precision(folder: Checkpoint) -> str:
    """Return the precision of most stored weights: int8, or the embedding's float type."""
    embedding = folder.tensors[f"{folder.spec.family.embedding}.weight"]
    return INT8 if folder.is_int8 else PRECISION_NAMES[embedding.dtype]


def _graph(folder: Checkpoint) -> dict[str, Any] | None:
    """Return the format and size of the folder's graph, None if it has no graph."""
    if not has_onnx(folder):
        return None
    graph, held = (folder.folder / ONNX_DIR / GRAPH_FILE).read_bytes(), graph_precision(folder)
    return {
        "precision": held.name,
        "block": int(stored_text(graph, META_BLOCK) or 0),
        **({"in_rows": True} if stored_text(graph, META_IN_ROWS) else {}),
        "bytes": (folder.folder / ONNX_DIR / WEIGHTS_FILE).stat().st_size,
        **({"expert_block": held.of_experts.block} if folder.spec.family.mixture else {}),
    }


def _gguf(folder: Checkpoint) -> dict[str, int] | None:
    path = folder.folder / GGUF_FILE
    return {"bytes": path.stat().st_size} if path.is_file() else None


def _graph_line(graph: Mapping[str, Any]) -> str:
    held = format_in_words(graph["precision"], graph["block"], "in_rows" in graph)
    if graph.get("expert_block"):
        held += f" ({graph['expert_block']} in experts)"
    return f"ONNX graph: {held}, {graph['bytes']:,} bytes"


def bytes_per_step(folder: Checkpoint) -> int:
    """Count the bytes that one decode step reads: all but embedding tables and idle experts.

    Of tables it reads single rows, but a tied head reads its whole table.
    """
    share = folder.spec.share_read
    spec = folder.spec
    tables = {name for name, axes in spec.outside.items() if len(axes) == 2}
    tables -= {f"{spec.family.embedding}.weight"} if spec.tied_head else set()
    return sum(
        round(info.num_bytes * share(name.rpartition(".")[0]))
        for name, info in folder.tensors.items()
        if name not in tables
    )


def _read_plan(path: Path, spec: ModelSpec) -> Plan:
    """Read a folder's plan; raise SgateError unless it leads to exactly the widths of `spec`."""
    plan = read_plan(path)
    dense_spec(plan, spec, str(path))
    return plan


def _read_sizes(folder: Checkpoint, plan: Plan) -> tuple[Size, ...]:
    """Read the smaller sizes of a folder; raise SgateError unless they are of the plan's base."""
    sizes, source = read_sizes(folder.folder), str(folder.folder / SIZES_FILE)
    dense = dense_spec(plan, folder.spec, PLAN_FILE)
    for size in sizes:
        check_size(size, plan, dense, source)
    return sizes
