"""Apply a plan: compute the tensors of the pruned model, one at a time.

Headers are computed first, so that everything can be checked before a byte is written; the arrays
follow in the same order. Peak memory is the largest tensor.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from converters.folded_constants import FoldedConstants
from converters.masked import Indices, MaskedCheckpoint
from sgate_serve.architecture.family import (
    DOWN,
    EXPERTS,
    HEAD_UNITS,
    HIDDEN,
    KEY,
    OUTPUT,
    QUERY,
)
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.architecture.recurrent_layers import CHANNELS, HEADS, channel_spans
from sgate_serve.checkpoint.tensor_files import DTYPES, Array
from sgate_serve.checkpoint.writer import TensorHeader
from sgate_serve.plan import Plan, head_dims
from sgate_serve.plan.placement import Placement, Side, place, pruned_spec


def tensor_headers(masked: MaskedCheckpoint, plan: Plan) -> list[TensorHeader]:
    """Return the header of every tensor that the rewritten folder holds, in writing order."""
    return Rewriter(masked, plan).headers()


def rewritten_tensors(masked: MaskedCheckpoint, plan: Plan) -> Iterator[Array]:
    """Yield the surviving part of every masked tensor, in the order of `tensor_headers`."""
    rewriter = Rewriter(masked, plan)
    for header in rewriter.headers():
        yield rewriter.tensor(header.name)


class Rewriter:
    """Applies one plan to one masked model."""

    def __init__(self, masked: MaskedCheckpoint, plan: Plan) -> None:
        self.masked, self.plan, self.dense = masked, plan, masked.spec
        self.small = pruned_spec(plan, masked.spec)
        self.constants = FoldedConstants(masked, plan)
        self._modules = self.small.module_names()
        self._outside = self.small.axes_outside()

    def headers(self) -> list[TensorHeader]:
        shapes = self.small.tensor_shapes()
        return [TensorHeader(name, self._dtype(name), shape) for name, shape in shapes.items()]

    def tensor(self, name: str) -> Array:
        """Return one tensor of the pruned model, in the dtype of its header."""
        module, _, kind = name.rpartition(".")
        if module in self._modules:
            part: Callable[[str], Array] = {
                "weight": self._weight,
                "bias": self._bias,
                IN_INDEX: self._in_index,
                OUT_INDEX: self._out_index,
            }[kind]
            return np.ascontiguousarray(part(module)).astype(DTYPES[self._dtype(name)], copy=False)
        return self._vector_or_table(name)

    def _dtype(self, name: str) -> str:
        if name.endswith((f".{IN_INDEX}", f".{OUT_INDEX}")):
            return "I64"
        stored = self.masked.dtype(self._dense_name(name))
        return "F32" if name in self.constants.changed and stored != "F64" else stored

    def _dense_name(self, name: str) -> str:
        """Return the name that a tensor has before pruning, which numbers experts anew."""
        module, _, kind = name.rpartition(".")
        number = self._dense_expert(module)
        if number is None:
            return name
        index, (role,) = self._modules[module], self.small.modules(self._modules[module])[module]
        expert = number if number < len(self.dense.layers[index].experts) else None
        return f"{self.dense.family.expert_linear(index, expert, role)}.{kind}"

    def _dense_expert(self, module: str) -> int | None:
        """Return the number that a module's expert has before pruning, the shared one's last."""
        number = self.small.expert_of(module)
        if number is None:
            return None
        index = self._modules[module]
        kept, dense = self.plan.layers[index].experts, self.dense.layers[index]
        return kept[number] if number < len(kept) else len(dense.experts)

    def _weight(self, module: str) -> Array:
        index = self._modules[module]
        roles = self.small.modules(index)[module]
        parts = [self._role_weight(index, role, self._own_units(module)) for role in roles]
        stacked = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.dense.family.alternates(index) and len(roles) > 1:
            stacked = stacked[np.argsort(self._stored_rows(module))]
        return stacked.T if self.dense.family.is_transposed else stacked

    def _role_weight(self, index: int, role: str, units: slice | None) -> Array:
        """Return the stored part of one role: sliced, merges applied, dead columns zeroed.

        In an expert only those of its own `units`, in the coordinates before pruning.
        """
        at = self._placed(index, role)
        if units is not None:
            at = _within(at, role, units)
        shape = self.dense.linear_shapes(index)[role]
        rows, columns = _stored(at.rows, shape[0]), _stored(at.columns, shape[1])
        value = self.masked.read_role(index, role, rows, columns)
        value = self._merge_heads(index, value, at) if role == OUTPUT else value
        value = self._merge_keys(index, value, at) if role == KEY else value
        dead = np.isin(at.columns.stored, self._zeroed_columns(index, role))
        return np.where(dead, np.zeros((), value.dtype), value) if dead.any() else value

    def _own_units(self, module: str) -> slice | None:
        """Return which units of the dense layer an expert's module has; None for other modules."""
        number = self._dense_expert(module)
        if number is None:
            return None
        return self.dense.layers[self._modules[module]].expert_spans[number]

    def _zeroed_columns(self, index: int, role: str) -> Indices:
        """Return the columns stored as zeros: of revived units, or folded into the bias."""
        layer = self.plan.layers[index]
        if role == DOWN:
            return np.array(sorted(layer.revived("mlp_units")), np.int64)
        if role == OUTPUT:
            return head_dims(tuple(sorted(layer.revived("heads"))), layer.dense.head_dim)
        return self.constants.folded_columns(index, role)

    def _merge_heads(self, index: int, value: Array, at: Placement) -> Array:
        """Replace the output columns of the first of merged heads by the sum over all of them."""
        width = self.plan.layers[index].dense.head_dim
        rows = _stored(at.rows, self.dense.hidden_size)
        for merge in self.constants.merged(index, "heads"):
            into = head_dims(merge.indices[:1], width)
            parts = (
                self.masked.read_role(index, OUTPUT, rows, head_dims((head,), width))
                for head in merge.indices
            )
            total = sum(part.astype(np.float64) for part in parts)
            value = value.copy()
            kept = np.isin(into, at.columns.stored)
            places = np.searchsorted(at.columns.stored, into[kept])
            value[:, places] = np.asarray(total)[:, kept].astype(value.dtype)
        return value

    def _merge_keys(self, index: int, value: Array, at: Placement) -> Array:
        """Replace the key row of the first of merged dimensions by the combined row."""
        columns = _stored(at.columns, self.dense.hidden_size)
        for merge in self.constants.merged(index, "key_dims"):
            place_of = np.flatnonzero(at.rows.stored == merge.indices[0])
            row = self.constants.merged_key(index, merge)[:-1]
            value = value.copy()
            value[place_of] = (row if columns is None else row[columns]).astype(value.dtype)
        return value

    def _bias(self, module: str) -> Array:
        index, units = self._modules[module], self._own_units(module)
        if units is not None:
            return self._expert_bias(module, units)
        parts = []
        for role in self.small.modules(index)[module]:
            at = self._placed(index, role)
            parts.append(self._role_bias(index, role)[at.rows.stays])
        return np.concatenate(parts)[np.argsort(self.small.module_rows(index, module))]

    def _expert_bias(self, module: str, units: slice) -> Array:
        """Return the bias of an expert's linear, which no constant moves into."""
        index = self._modules[module]
        (role,) = self.small.modules(index)[module]
        rows = self._placed(index, role).rows.stays
        if role != DOWN:
            rows = rows[(rows >= units.start) & (rows < units.stop)] - units.start
        return self.masked.read(self._dense_name(f"{module}.bias"), rows)

    def _role_bias(self, index: int, role: str) -> Array:
        value = self.constants.bias(index, role)
        for merge in self.constants.merged(index, "key_dims") if role == KEY else ():
            value[merge.indices[0]] = self.constants.merged_key(index, merge)[-1]
        return value

    def _in_index(self, module: str) -> Array:
        index = self._modules[module]
        place_of = self._placed(index, self.small.modules(index)[module][0]).columns.index
        assert place_of is not None, module
        return place_of

    def _out_index(self, module: str) -> Array:
        return np.sort(self._stored_rows(module))

    def _stored_rows(self, module: str) -> Indices:
        """Return the rows of a module that are stored, in the order of its roles."""
        index, parts = self._modules[module], []
        for role in self.small.modules(index)[module]:
            own, stored = self.small.role_rows(index, role), self._placed(index, role).rows.index
            parts.append(own if stored is None else own[stored])
        return np.concatenate(parts)

    def _vector_or_table(self, name: str) -> Array:
        """Return a norm, a table or a tensor of the head, sliced along its named axes."""
        # A tensor without named axes is a norm of the residual stream.
        axes = self._outside.get(name, (HIDDEN,))
        index, axes = self._in_layers.get(name, (0, axes))
        kept = [self._kept(axis, index) for axis in axes]
        kept = [self._unaligned[name]] if name in self._unaligned else kept
        # A third axis, that of a convolution, stays whole.
        value = self.masked.read(name, *kept[:2])
        added = self.constants.added_to(name)
        if added is None:
            return value
        added = added if kept[-1] is None else added[kept[-1]]
        return (value.astype(np.float64) + added).astype(DTYPES[self._dtype(name)])

    @cached_property
    def _unaligned(self) -> dict[str, Indices | None]:
        """Vectors that do not lie along the stream, and the part that stays; None for all.

        They are the bias of the model's head, what layers multiply the stream by, the norms on
        query and key, of which only those that span all heads lose a part, and the sinks of heads.
        """
        family = self.dense.family
        found: dict[str, Indices | None] = {f"{family.head}.bias": None}
        for index in range(len(self.small.layers)):
            if (sinks := self.small.sinks(index)) is not None:
                found[sinks] = np.asarray(self.plan.layers[index].heads, np.int64)
            if (scale := family.scale_name(index)) is not None:
                found[scale] = None
            norms = self.small.head_norm_sizes(index)
            for name, role in zip(norms, (QUERY, KEY), strict=False):
                whole = not family.has_joint_head_norms
                stays = None if whole else self._placed(index, role).rows.stays
                found[f"{name}.weight"] = stays
        return found

    @cached_property
    def _in_layers(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """The tensors of layers besides norms and linears of blocks: the layer, the axes."""
        small, found = self.small, dict[str, tuple[int, tuple[str, ...]]]()
        for index in range(len(small.layers)):
            found |= {name: (index, axes) for name, axes in small.named_tensors(index).items()}
        return found

    def _kept(self, axis: str, layer: int) -> Indices | None:
        if axis == EXPERTS:
            return np.asarray(self.plan.layers[layer].experts, np.int64)
        if axis == HEADS:
            return np.asarray(self.plan.layers[layer].heads, np.int64)
        if axis == CHANNELS:
            return self._channels(layer)
        kept = {HIDDEN: self.plan.hidden, HEAD_UNITS: self.plan.head_units}.get(axis)
        return None if kept is None else np.asarray(kept, np.int64)

    def _channels(self, layer: int) -> Indices:
        """Return the channels that stay of the convolution of a recurrent layer."""
        spans = channel_spans(self.dense.layers[layer])
        return np.concatenate(
            [span.start + self._placed(layer, role).rows.stays for role, span in spans.items()]
        )

    def _placed(self, index: int, role: str) -> Placement:
        placed = place(self.plan, self.dense, index, role)
        assert placed is not None, (index, role)
        return placed


def _within(at: Placement, role: str, units: slice) -> Placement:
    """Restrict a role's own side to some of its units."""
    side = at.columns if role == DOWN else at.rows
    own = side.stays[(side.stays >= units.start) & (side.stays < units.stop)]
    return replace(at, **{"columns" if role == DOWN else "rows": Side(own, own)})


def _stored(side: Side, size: int) -> Indices | None:
    return None if side.is_all(size) else side.stored
