"""Reads, checks and writes a gates folder: `gates.safetensors` and optional `deltas.safetensors`.

Gates are fp32 read-outs in [0, 1]; a closed gate is exactly 0. Deltas are replacement values, in
the dtype that was measured, of every weight that training changed, and biases that the base lacks;
they are read only when needed. The optional order says which gates close for smaller sizes. Gates
of another base are refused.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import (
    DTYPE_NAMES,
    FLOAT_DTYPES,
    Array,
    TensorInfo,
    read_header,
)
from sgate_serve.checkpoint.writer import FolderWriter, TensorHeader, new_folder, write_tensors
from sgate_serve.errors import CheckpointError, GatesError
from sgate_serve.gates.keys import EXPERTS, gate_sites, head_sites, linear_sites, one_of_each_kind
from sgate_serve.gates.order import Order, closed_to, read_order, write_order
from sgate_serve.plan import Gate, Masks

GATES_FILE = "gates.safetensors"
DELTAS_FILE = "deltas.safetensors"
GATES_FORMAT = "sgate-gates"
GATES_VERSION = "1"

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Gates:
    """Gate read-outs by key, their origin, and the weights trained together with them."""

    method: str
    family: str
    granularity: str
    base_fingerprint: str
    values: Mapping[str, Values]
    deltas: Mapping[str, TensorInfo] = field(default_factory=dict)
    source: str = GATES_FILE
    base_digest: str | None = None
    order: Order = field(default_factory=dict)

    @classmethod
    def read(cls, location: str | Path) -> "Gates":
        """Read a gates folder, or the `gates.safetensors` in it.

        Raises GatesError for a missing, malformed or foreign file, and for values that are not
        read-outs. Of the deltas only headers are read.
        """
        path = Path(location)
        file = path / GATES_FILE if path.is_dir() else path
        if not file.is_file():
            raise GatesError(f"{file} is missing; give a gates folder or its {GATES_FILE}")
        headers, metadata = _read_header(file), _read_metadata(file)
        deltas_file = file.parent / DELTAS_FILE
        values = {name: info.read() for name, info in headers.items()}
        gates = cls(
            method=metadata["method"],
            family=metadata["family"],
            granularity=metadata["granularity"],
            base_fingerprint=metadata["base_fingerprint"],
            values=values,
            deltas=_read_header(deltas_file) if deltas_file.exists() else {},
            source=str(file),
            base_digest=metadata.get("base_digest"),
            order=read_order(file.parent, values),
        )
        gates.check_values()
        return gates

    def write(self, folder: Path, new_deltas: Mapping[str, Array] | None = None) -> None:
        """Write a new gates folder, all or nothing; `new_deltas` join or replace the deltas.

        Raises GatesError for values that are not read-outs, and CheckpointError if `folder` is not
        empty.
        """
        with new_folder(folder) as writer:
            self.stage(writer, new_deltas or {})

    def stage(self, writer: FolderWriter, new_deltas: Mapping[str, Array]) -> None:
        """Stage the files of the gates folder in `writer`."""
        self.check_values()
        metadata = {
            "format": GATES_FORMAT,
            "version": GATES_VERSION,
            "method": self.method,
            "family": self.family,
            "granularity": self.granularity,
            "base_fingerprint": self.base_fingerprint,
            **({} if self.base_digest is None else {"base_digest": self.base_digest}),
        }
        headers = [TensorHeader(k, "F32", v.shape) for k, v in self.values.items()]
        write_tensors(writer.path(GATES_FILE), headers, self.values.values(), metadata)
        writer.last = [GATES_FILE]
        if self.order:
            write_order(writer, self.order)
        headers = [
            *(TensorHeader(k, i.dtype, i.shape) for k, i in self._kept_deltas(new_deltas).items()),
            *(TensorHeader(k, DTYPE_NAMES[a.dtype], a.shape) for k, a in new_deltas.items()),
        ]
        if headers:
            kept = (info.read() for info in self._kept_deltas(new_deltas).values())
            arrays = (array for group in (kept, new_deltas.values()) for array in group)
            write_tensors(writer.path(DELTAS_FILE), headers, arrays, {"format": "pt"})

    def closed_to(self, step: int) -> "Gates":
        """Return the gates of a smaller size: those of the order up to `step` are closed too."""
        return replace(self, values=closed_to(self.values, self.order, step), order={})

    def _kept_deltas(self, new_deltas: Mapping[str, Array]) -> dict[str, TensorInfo]:
        return {name: info for name, info in self.deltas.items() if name not in new_deltas}

    def check_values(self) -> None:
        """Raise GatesError unless every gate is an fp32 vector of finite values in [0, 1]."""
        for key, values in self.values.items():
            if values.dtype != np.float32 or values.ndim != 1:
                raise GatesError(
                    f"{self.source}: {key} is {values.dtype} of shape {list(values.shape)}; "
                    "gates are stored as fp32 vectors"
                )
            if not np.isfinite(values).all():
                raise GatesError(f"{self.source}: {key} holds NaN or infinity; train again")
            if values.size and not 0 <= values.min() <= values.max() <= 1:
                raise GatesError(
                    f"{self.source}: {key} spans {values.min():g} to {values.max():g}; store "
                    "read-outs in [0, 1], not logits"
                )

    def check(self, checkpoint: Checkpoint, *, whole_base: bool = True) -> None:
        """Raise GatesError unless these gates and deltas were made for this base model.

        Without `whole_base` only fingerprints are compared, which reads little of the base.
        """
        spec = checkpoint.spec
        if self.family != spec.family.name:
            raise GatesError(
                f"{self.source}: gates of family {self.family!r}, but {checkpoint.folder} is of "
                f"family {spec.family.name!r}; give the base that they were trained on"
            )
        self._check_base(checkpoint, whole_base)
        self.check_values()
        self._check_keys(spec)
        self._check_deltas(spec)

    def _check_base(self, checkpoint: Checkpoint, whole_base: bool) -> None:
        remedy = "give the base that they were trained on, or train again on this one"
        if self.base_fingerprint != checkpoint.fingerprint:
            raise GatesError(
                f"{self.source}: trained on base {self.base_fingerprint[:12]}…, but "
                f"{checkpoint.folder} is {checkpoint.fingerprint[:12]}…; {remedy}"
            )
        if whole_base and self.base_digest not in (None, checkpoint.digest):
            raise GatesError(
                f"{self.source}: config.json or weights of {checkpoint.folder} were edited after "
                f"these gates were trained (digest {self.base_digest:.12}…, now "
                f"{checkpoint.digest:.12}…); {remedy}"
            )

    def _check_keys(self, spec: ModelSpec) -> None:
        sites = gate_sites(spec)
        for key, values in self.values.items():
            if key not in sites:
                raise GatesError(
                    f"{self.source}: {key} names no gate of this model; expected a key like "
                    f"{', '.join(one_of_each_kind(sites.values())) or 'none, for it has no blocks'}"
                )
            if values.size != sites[key].num_gates:
                raise GatesError(
                    f"{self.source}: {key} has {values.size} gates, the model has "
                    f"{sites[key].num_gates} there; give the base that they were trained on"
                )
            if sites[key].kind == EXPERTS:
                self._check_experts(key, values)

    def _check_experts(self, key: str, values: Values) -> None:
        """Raise GatesError unless each expert is open or closed, and one of a layer is open."""
        if not np.isin(values, (0, 1)).all():
            part = values[(values > 0) & (values < 1)][0]
            raise GatesError(
                f"{self.source}: {key} holds {part:g}; an expert is open, 1, or closed, 0: close "
                "single units of it instead"
            )
        if not values.any():
            raise GatesError(
                f"{self.source}: {key} closes every expert of its layer, and a router must choose "
                "one; close the units of all of them to remove the block"
            )

    def _check_deltas(self, spec: ModelSpec) -> None:
        expected = self.spec(spec).tensor_shapes()
        for name, info in self.deltas.items():
            if name not in expected:
                raise GatesError(
                    f"{info.file}: {name} is neither a tensor of the base nor a bias of one of "
                    "its linears; remove it or train again"
                )
            if info.shape != expected[name] or info.dtype not in FLOAT_DTYPES:
                raise GatesError(
                    f"{info.file}: {name} is {info.dtype} of shape {list(info.shape)}, the base "
                    f"wants a float tensor of shape {list(expected[name])}"
                )

    def spec(self, dense: ModelSpec) -> ModelSpec:
        """Return the base's spec with the biases that the deltas add, its head untied if necessary.

        A tied head shares the embedding's weights, so gates, a bias or weights of its own need a
        copy. Column gates alone do not (`_keeps_tie`).
        """
        spec = with_added_biases(dense, self.deltas)
        head = dense.family.head
        own = (f"{head}.weight" in self.deltas, f"{head}.bias" in self.deltas)
        gated = f"{head}.rows" in self.values or f"{head}.columns" in self.values
        untied = any(own) or (gated and not self._keeps_tie(dense))
        return replace(spec, tied_head=spec.tied_head and not untied)

    def _keeps_tie(self, dense: ModelSpec) -> bool:
        """Say whether the head's gates fold into the norm before it.

        Only columns of a tied head do, and an offset norm, 1 + w, cannot hold a factor.
        """
        head, names = dense.family.head, {*self.values, *self.deltas}
        alone = f"{head}.columns" in names and f"{head}.rows" not in names
        has_own = f"{head}.weight" in names or f"{head}.bias" in names
        is_plain = dense.family.final_norm is not None and not dense.family.norm_offset
        return dense.tied_head and alone and not has_own and is_plain

    def masks(self, spec: ModelSpec) -> Masks:
        """Fold all gates into rows and columns of linears, by module name.

        An MLP unit is a column of the down projection; a head or KV group is a run of columns of
        the output projection, and an expert a row of its router. Gates of the same row or column
        multiply. The keys must have been checked.
        """
        sites = gate_sites(spec)
        masks: dict[str, Gate] = {}
        for key, values in self.values.items():
            site = sites[key]
            spread = np.repeat(values, site.repeat)
            gate = masks.get(site.module, Gate())
            known = gate.rows if site.side == "rows" else gate.columns
            product = spread if known is None else known * spread
            masks[site.module] = replace(gate, **{site.side: product})
        if self._keeps_tie(spec):
            # The norm before the head applies the factors of the head's columns.
            columns = masks.pop(spec.family.head).columns
            masks[str(spec.family.final_norm)] = Gate(rows=columns)
        return masks


def with_added_biases(dense: ModelSpec, deltas: Container[str]) -> ModelSpec:
    """Return `dense` with a bias for each linear that has one in `deltas` but not in `dense`."""
    own = dense.tensor_shapes()
    modules = {site.module for site in (*linear_sites(dense), *head_sites(dense))}
    added = {name for name in modules if f"{name}.bias" in deltas and f"{name}.bias" not in own}
    return replace(dense, extra_biases=dense.extra_biases | added)


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        return read_header(file)
    except CheckpointError as error:
        raise GatesError(str(error)) from error


def _read_metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="np") as tensors:
            metadata: dict[str, str] = tensors.metadata() or {}
    except SafetensorError as error:
        raise GatesError(f"{file}: malformed safetensors header ({error})") from error
    if metadata.get("format") != GATES_FORMAT or metadata.get("version") != GATES_VERSION:
        raise GatesError(
            f"{file}: format {metadata.get('format')!r} version {metadata.get('version')!r} in its "
            f"metadata; this release reads {GATES_FORMAT} version {GATES_VERSION}"
        )
    for name in ("method", "family", "granularity", "base_fingerprint"):
        if name not in metadata:
            raise GatesError(
                f"{file}: metadata lacks {name}; docs/format.md (the gates folder) lists what it "
                "says, and `sgate inspect BASE --json` the fingerprint of a base"
            )
    return metadata
