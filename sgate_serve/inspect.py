"""What a model folder holds: widths per layer, bytes, predicted speedup, certificate."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgate_serve.bench.ideal import decode_weights, ideal_speedup
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.errors import CheckpointError
from sgate_serve.family import CAUSAL_LM
from sgate_serve.fields import FLAG, NUMBER, TEXT, Kind, check_fields, read_json
from sgate_serve.figures import Figures
from sgate_serve.placement import dense_spec
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan_json import read_plan
from sgate_serve.spec import ModelSpec

CERTIFICATE_FILE = "verification.json"
CERTIFICATE_FIELDS: Mapping[str, Kind] = {
    "passed": FLAG,
    "engine": TEXT,
    "engine_version": TEXT,
    "max_abs_diff": NUMBER,
}
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Inspection:
    """A folder, the plan it was written with and its certificate, where it has them."""

    folder: Checkpoint
    plan: Plan | None
    certificate: dict[str, Any] | None

    @classmethod
    def of(cls, location: str | Path) -> "Inspection":
        """Read a folder; raise SgateError if it, its plan or its certificate is malformed."""
        checkpoint = Checkpoint.open(location)
        plan_path = checkpoint.folder / PLAN_FILE
        certificate_path = checkpoint.folder / CERTIFICATE_FILE
        return cls(
            folder=checkpoint,
            plan=_read_plan(plan_path, checkpoint.spec) if plan_path.exists() else None,
            certificate=_read_certificate(certificate_path) if certificate_path.exists() else None,
        )

    def to_json(self) -> dict[str, Any]:
        spec = self.folder.spec
        bytes_per_weight = self.folder.num_bytes / spec.num_parameters
        report: dict[str, Any] = {
            "family": spec.family.name,
            "model_type": self.folder.config["model_type"],
            "layout": self.folder.layout,
            "parameters": spec.num_parameters,
            "bytes_stored": self.folder.num_bytes,
            # Of a causal LM; of another model, what one pass reads.
            "bytes_per_decode_step": round(decode_weights(spec) * bytes_per_weight),
            "layers": [
                {
                    "mlp_units": layer.mlp_units,
                    "heads": layer.num_heads,
                    "kv_heads": layer.num_kv_heads,
                    "head_dim": layer.head_dim,
                }
                for layer in spec.layers
            ],
            "certificate": self.certificate,
        }
        if self.plan is not None:
            dense = dense_spec(self.plan, spec, PLAN_FILE)
            figures = Figures.of(self.plan, dense)
            ideal = ideal_speedup(dense, spec, PREFILL_TOKENS)
            report |= {
                **figures.headline(),
                "figures": vars(figures),
                "predicted_speedup": {
                    **({"decode": ideal.decode} if spec.task == CAUSAL_LM else {}),
                    "prefill": ideal.prefill,
                },
            }
        return report

    def lines(self) -> Iterator[str]:
        """Yield the report for a person."""
        report = self.to_json()
        kind = report["layout"] or f"model_type {report['model_type']}"
        yield f"{self.folder.folder}: {report['family']} family, {kind}"
        yield (
            f"{report['parameters']:,} parameters, {report['bytes_stored']:,} bytes stored, "
            f"{report['bytes_per_decode_step']:,} read per step"
        )
        yield f"{'layer':>5}  {'MLP units':>9}  {'heads':>5}  {'KV heads':>8}  {'head dim':>8}"
        for index, layer in enumerate(report["layers"]):
            yield (
                f"{index:>5}  {layer['mlp_units']:>9}  {layer['heads']:>5}  "
                f"{layer['kv_heads']:>8}  {layer['head_dim']:>8}"
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
        yield _certificate_line(self.certificate)


def _read_plan(path: Path, spec: ModelSpec) -> Plan:
    """Read a folder's plan; raise SgateError unless it leads to just the widths of `spec`."""
    plan = read_plan(path)
    dense_spec(plan, spec, str(path))
    return plan


def _read_certificate(path: Path) -> dict[str, Any]:
    certificate = read_json(path)
    check_fields(certificate, CERTIFICATE_FIELDS, str(path), CheckpointError)
    for key in CERTIFICATE_FIELDS:
        if certificate.get(key) is None:
            raise CheckpointError(f"{path} lacks {key}; run `sgate verify` again")
    return certificate


def _certificate_line(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "not verified yet: run `sgate verify CHECKPOINT [--gates G] THIS_FOLDER`"
    outcome = "verified" if certificate["passed"] else "verification FAILED"
    return (
        f"{outcome} on {certificate['engine']} {certificate['engine_version']}: "
        f"max abs logit difference {certificate['max_abs_diff']:.2e}"
    )
