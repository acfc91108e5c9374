"""The width of each layer of a checkpoint, from the shapes of its tensors alone.

Names and fused projections come from the family. Tensors of one block that do not fit each other
are refused here, and so are incomplete heads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sgate_serve.architecture.config import biased_roles
from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import (
    ATTENTION_ROLES,
    DOWN,
    GATE,
    KEY,
    MLP_ROLES,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
    Family,
)
from sgate_serve.checkpoint.ragged.claims import GROUP, HEAD_DIM, HEADS, KV_HEADS, UNITS, Claim
from sgate_serve.errors import CheckpointError

# The role whose tensor decides a size.
DECIDES: Mapping[str, str] = {KV_HEADS: KEY, GROUP: KEY, UNITS: DOWN}

Sizes = dict[str, int]


class StoredTensor(Protocol):
    """The part of a safetensors header entry that this module needs."""

    @property
    def file(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Widths:
    """The number of query, key and MLP dimensions of one layer; 0 without the block."""

    query: int
    kv: int
    units: int


class Headers:
    """The tensors of one checkpoint, read by role, and the errors that name them."""

    def __init__(self, tensors: Mapping[str, StoredTensor], family: Family, source: str) -> None:
        self.tensors, self.family, self.source = tensors, family, source
        self._modules = {name.rpartition(".")[0] for name in tensors}

    def has_blocks(self, depth: int) -> bool:
        return any(self._has(layer, (*ATTENTION_ROLES, *MLP_ROLES)) for layer in range(depth))

    def has_whole_heads(self, depth: int, hidden: int) -> bool:
        """Say whether no layer lost heads, in a family whose heads are together hidden wide."""
        return all(self.widths(layer).query == hidden for layer in range(depth))

    def widths(self, layer: int) -> Widths:
        """Read one layer's widths; a block must have all its linears, matching, or none."""
        query = kv = units = 0
        if self._has(layer, ATTENTION_ROLES):
            query = self._shape(layer, OUTPUT)[1]
            for roles in self._fused(QUERY, KEY, VALUE):
                own, others = query * (QUERY in roles), len(roles) - (QUERY in roles)
                if others and not kv:
                    kv = max((self._shape(layer, roles[0])[0] - own) // others, 1)
                self._check_rows(layer, roles[0], own + others * kv, OUTPUT)
        if self._has(layer, MLP_ROLES):
            units = self._shape(layer, DOWN)[1]
            for roles in self._fused(GATE, UP):
                self._check_rows(layer, roles[0], len(roles) * units, DOWN)
        return Widths(query, kv, units)

    def sizes(self, layer: int, widths: Widths, head_dim: int) -> Sizes:
        """Turn one layer's widths into whole heads of `head_dim`."""
        for width, role in ((widths.query, OUTPUT), (widths.kv, KEY)):
            if width % head_dim:
                raise CheckpointError(
                    f"{self._place(layer, role)}; {width} is not a whole number of heads of "
                    f"head_dim {head_dim}: cut whole heads only, or correct head_dim in config.json"
                )
        heads, kv_heads = widths.query // head_dim, widths.kv // head_dim
        if kv_heads and heads % kv_heads:
            raise CheckpointError(
                f"{self._place(layer, OUTPUT)}; its {heads} query heads are not a multiple of the "
                f"{kv_heads} KV heads of {self.family.linear(layer, KEY)}: cut as many query heads "
                "for each KV head"
            )
        return {HEADS: heads, KV_HEADS: kv_heads, HEAD_DIM: head_dim, UNITS: widths.units}

    def head_norm(self, layer: int) -> int:
        """Return the length of the layer's norms over single heads; 0 without such norms."""
        for norm in () if self.family.has_joint_head_norms else self.family.head_norms:
            tensor = self.tensors.get(f"{self.family.layer_name(layer)}.{norm}.weight")
            if tensor is not None and len(tensor.shape) == 1:
                return tensor.shape[0]
        return 0

    def check(self, claim: Claim, found: Sizes) -> None:
        """Raise CheckpointError unless the tensors of a layer have the size the config states."""
        group = found[HEADS] // found[KV_HEADS] if found[KV_HEADS] else 0
        size = (found | {GROUP: group})[claim.size]
        if size != claim.value:
            raise CheckpointError(
                f"{self._place(claim.layer, DECIDES.get(claim.size, OUTPUT))}; that makes "
                f"{claim.size} {size}, but {claim.where} in config.json says {claim.value}: "
                "correct it, or give the tensors that it describes"
            )

    def added_biases(self, config: Mapping[str, Any], depth: int) -> Iterator[str]:
        """Yield the linears with a bias that neither the family nor the config implies."""
        get = ConfigReader(config, self.source, self.family)
        own = {self.family.linears[role] for role in biased_roles(get, self.family)}
        added = [name for name in dict.fromkeys(self.family.linears.values()) if name not in own]
        for layer in range(depth):
            names = (f"{self.family.layer_name(layer)}.{module}" for module in added)
            yield from (name for name in names if f"{name}.bias" in self.tensors)

    def check_none_added(self, linears: Sequence[str]) -> None:
        """Refuse linears with an added bias where nothing else keeps transformers from loading.

        It would leave the bias out.
        """
        for linear in linears:
            roles = (role for role, name in self.family.linears.items() if linear.endswith(name))
            switch = self.family.biases.get(next(roles))
            remedy = f"set {switch} to true, or " if isinstance(switch, str) else ""
            raise CheckpointError(
                f"{self.tensors[f'{linear}.bias'].file}: tensor {linear}.bias is no part of family "
                f"{self.family.name} with this config.json, and transformers leaves it out; "
                f"{remedy}remove it"
            )

    def _has(self, layer: int, roles: Sequence[str]) -> bool:
        linears = self.family.linears
        return any(self.family.linear(layer, r) in self._modules for r in roles if r in linears)

    def _fused(self, *roles: str) -> list[list[str]]:
        """Group the roles that the family has by the module that holds them."""
        linears = self.family.linears
        held = [role for role in roles if role in linears]
        modules = dict.fromkeys(linears[role] for role in held)
        return [[role for role in held if linears[role] == module] for module in modules]

    def _shape(self, layer: int, role: str) -> tuple[int, int]:
        tensor = self.tensors.get(f"{self.family.linear(layer, role)}.weight")
        if tensor is None:
            raise CheckpointError(
                f"{self._place(layer, role)}, though others of its block are: is a shard lost, or "
                "is the checkpoint quantized or of low rank?"
            )
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise CheckpointError(
                f"{self._place(layer, role)}; expected rows and columns, or no tensor if its "
                "block is removed"
            )
        return tensor.shape[0], tensor.shape[1]

    def _check_rows(self, layer: int, role: str, rows: int, partner: str) -> None:
        if self._shape(layer, role)[0] != rows:
            raise CheckpointError(
                f"{self._place(layer, role)}; expected {rows} rows, to fit the columns of "
                f"{self.family.linear(layer, partner)} and its neighbours: cut all linears of a "
                "block alike"
            )

    def _place(self, layer: int, role: str) -> str:
        """Name a linear's file, tensor and shape: the start of a message."""
        name = f"{self.family.linear(layer, role)}.weight"
        tensor = self.tensors.get(name)
        if tensor is None:
            return f"{self.source}: tensor {name} is missing from the checkpoint"
        return f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}"
