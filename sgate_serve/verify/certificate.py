"""The result of a verification as a value: printed, stored with the model, and shown again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converters.model_card import CARD_END, CARD_FILE, CARD_START
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.writer import replace_text
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import FLAG, NUMBER, OBJECT, TEXT, Kind, check_fields, read_json
from sgate_serve.verify.certified_files import files_digest
from sgate_serve.verify.output_kind import TOKENS, OutputKind
from sgate_serve.verify.rounding import RANDOM_TOKENS, Quantization

CERTIFICATE_FILE = "verification.json"
CERTIFICATE_FIELDS: Mapping[str, Kind] = {
    "passed": FLAG,
    "engine": TEXT,
    "engine_version": TEXT,
}
OPTIONAL_FIELDS: Mapping[str, Kind] = {
    # Null if an engine gave no outputs; then nothing is verified.
    "max_abs_diff": NUMBER,
    "quantization": OBJECT,
    "model_digest": TEXT,
    "files_digest": TEXT,
    "base_fingerprint": TEXT,
    "base_digest": TEXT,
}
# For rounded weights; `mean_kl` is null unless outputs are logits of tokens or classes.
QUANTIZATION_FIELDS: Mapping[str, Kind] = {"precision": TEXT, "max_abs_diff": NUMBER}


@dataclass(frozen=True)
class Verification:
    """The comparison on one engine; `difference` describes its first failure, None if it holds.

    `max_abs_diff` and the counts are of `outputs`, in fp32 on both sides. No tokens are counted,
    and the version is empty, if the engine gave no outputs for a folder that differs. A token or
    class counts as a tie, not a failure, if the best two reference logits are closer than ten
    tolerances. For rounded weights the comparison is with the model before rounding, or with one
    rounded to the float type that is stored, and `quantization` is the cost of rounding. A part of
    the folder, such as its tensors, is None if it was not compared; `not_checked` says in words
    what the verdict does not cover. `model_digest` and `files_digest` are those of the folder:
    after any edit the verdict is about another model, config, tokenizer or graph.
    `base_fingerprint` and `base_digest` say which base it was compared with.
    """

    passed: bool
    difference: str | None
    engine: str
    engine_version: str
    max_abs_diff: float
    tolerance: float
    num_tokens: int
    tokens_equal: int
    ties: int
    tensors_equal: bool | None
    seed: int
    prompts: tuple[tuple[int, ...], ...]
    versions: dict[str, str]
    quantization: Quantization | None = None
    outputs: OutputKind = TOKENS
    differences: tuple[str, ...] = ()
    config_equal: bool | None = None
    files_equal: bool | None = None
    graph_equal: bool | None = None
    plan_equal: bool | None = None
    base_read_alike: bool | None = None
    batch_max_abs_diff: float | None = None
    segments: tuple[tuple[int, ...] | None, ...] = ()
    not_checked: tuple[str, ...] = ()
    model_digest: str | None = None
    files_digest: str | None = None
    base_fingerprint: str | None = None
    base_digest: str | None = None

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        if not self.num_tokens:
            value |= {"max_abs_diff": None, "tolerance": None}
        return value

    def write(self, folder: Path) -> None:
        """Write the certificate into the converted folder, and its result into the model card."""
        text = json.dumps(self.to_json(), indent=2) + "\n"
        replace_text(folder / CERTIFICATE_FILE, text)
        card = folder / CARD_FILE
        if not card.exists():
            return
        old = card.read_text(encoding="utf-8")
        before, found, rest = old.partition(CARD_START)
        _, ended, after = rest.partition(CARD_END)
        if found and ended:
            said = "\n".join(f"- {line}" for line in self.lines())
            replace_text(card, f"{before}{CARD_START}\n{said}\n{CARD_END}{after}")

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text: proven, measured, not checked, and the verdict."""
        proven = "" if self.quantization is None else "proven: "
        yield from (f"{proven}{line}" for line in self._exact_lines())
        if self.quantization is not None:
            yield from self.quantization.lines(self.outputs)
        yield from (f"not checked: {what}" for what in self.not_checked)
        if not self.passed:
            yield f"DIFFERS: {self.difference}"
            yield from (f"also: {difference}" for difference in self.differences[1:])
        elif self.quantization is None:
            yield "verified"
        else:
            yield f"verified: the plan; {self.quantization.precision} is a measured approximation"

    def _output_lines(self) -> Iterator[str]:
        before = _before(None if self.quantization is None else asdict(self.quantization))
        yield (
            f"{self.engine} {self.engine_version}{before}: max abs {self.outputs.name} difference "
            f"{self.max_abs_diff:.2e} (tolerance {self.tolerance:.2e})"
        )
        if self.outputs.choice is not None:
            tied = f", {self.ties} of the others ties" if self.ties else ""
            yield f"{self.tokens_equal} of {self.num_tokens} {self.outputs.choice} equal{tied}"

    def _exact_lines(self) -> Iterator[str]:
        if self.num_tokens:
            yield from self._output_lines()
        if self.batch_max_abs_diff is not None:
            yield f"in one batch: max abs difference {self.batch_max_abs_diff:.2e}"
        is_int8 = self.quantization is not None and self.quantization.precision == INT8
        how = f" in {INT8}" if is_int8 else ""
        if self.tensors_equal is not None:
            verb = "equal" if self.tensors_equal else "do NOT equal"
            yield f"stored tensors {verb} the plan's rewriting{how} of the masked dense model"
        if self.config_equal is not None:
            yield f"config.json {_equals(self.config_equal)} that of the base's conversion"
        if self.files_equal is not None:
            verb = "equal" if self.files_equal else "do NOT equal"
            yield f"the files next to them {verb} those of the base's conversion"
        if self.plan_equal is not None:
            yield f"sgate_plan.json {_equals(self.plan_equal)} the plan of this base, made again"
        if self.graph_equal is not None:
            yield f"the ONNX graph {_equals(self.graph_equal)} that of the stored tensors"
        if self.base_read_alike is not None:
            alike = "as" if self.base_read_alike else "NOT as"
            yield f"the base is read {alike} transformers reads it"


def _equals(is_equal: bool) -> str:
    return "equals" if is_equal else "does NOT equal"


def _before(quantization: Mapping[str, Any] | None) -> str:
    """Say which weights the proof is about: both sides have those of a narrower float type."""
    if quantization is None:
        return ""
    stored = quantization.get("stored")
    alike = "" if stored is None else f", rounded to {stored} alike"
    return alike if quantization["precision"] == stored else f"{alike}, before quantization"


def read_certificate(path: Path) -> dict[str, Any]:
    """Read a stored certificate; raise CheckpointError naming the file if it is malformed."""
    certificate = read_json(path)
    _check_complete(certificate, CERTIFICATE_FIELDS, str(path))
    check_fields(certificate, OPTIONAL_FIELDS, str(path), CheckpointError)
    if certificate["passed"]:
        _check_complete(certificate, {"max_abs_diff": NUMBER}, str(path))
    rounded = certificate.get("quantization")
    if rounded is not None:
        _check_complete(rounded, QUANTIZATION_FIELDS, f"{path}: quantization")
        check_fields(rounded, {"mean_kl": NUMBER}, f"{path}: quantization", CheckpointError)
    return certificate


def _check_complete(values: Mapping[str, Any], kinds: Mapping[str, Kind], source: str) -> None:
    check_fields(values, kinds, source, CheckpointError)
    for key in kinds:
        if values.get(key) is None:
            raise CheckpointError(f"{source} lacks {key}; run `sgate verify` again")


def is_current(certificate: Mapping[str, Any], model: Checkpoint) -> bool:
    """Say whether a certificate is about the model, files and graph that its folder holds now.

    Certificates of older releases do not say; they count as current.
    """
    if certificate.get("model_digest") not in (None, model.digest):
        return False
    return certificate.get("files_digest") in (None, files_digest(model))


def good_certificate(folder: Path, other_base: str | None) -> dict[str, Any] | None:
    """Return the folder's certificate if it passed, still holds, and is against another base.

    What a comparison with `other_base`, a fingerprint, finds does not contradict it.
    """
    path = folder / CERTIFICATE_FILE
    try:
        stored = read_certificate(path) if path.exists() else None
    except CheckpointError:
        return None
    if stored is None or not stored["passed"]:
        return None
    is_other = stored.get("base_fingerprint") not in (None, other_base)
    return stored if is_other and is_current(stored, Checkpoint.open(folder)) else None


def certificate_line(certificate: Mapping[str, Any] | None, folder: str = "THIS_FOLDER") -> str:
    """Return a stored certificate in one line; `folder` is what to verify if there is none."""
    if certificate is None:
        return f"not verified yet: run `sgate verify CHECKPOINT [--gates G] {folder}`"
    outcome = "verified" if certificate["passed"] else "verification FAILED"
    if "config_equal" not in certificate:
        outcome += " (by an older release, which compared neither config.json nor the graph)"
    rounded, difference = certificate.get("quantization"), certificate.get("max_abs_diff")
    before = _before(rounded)
    base = certificate.get("base_fingerprint")
    against = "" if base is None else f" against base {base:.12}…"
    engine = f"{certificate['engine']} {certificate['engine_version']}".strip()
    line = f"{outcome} on {engine}{against}{before}: "
    if difference is None:
        return f"{line}outputs were not compared"
    line += f"max abs difference {difference:.2e}"
    if rounded is None:
        return line
    if rounded.get("mean_kl") is None:
        return f"{line}; {rounded['precision']} differs by {rounded['max_abs_diff']:.2e}"
    data = rounded.get("data") or RANDOM_TOKENS
    return f"{line}; {rounded['precision']} diverges by {rounded['mean_kl']:.2e} nats on {data}"
