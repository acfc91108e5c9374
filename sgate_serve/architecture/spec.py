"""The architecture of one model, read from its config, and the tensors that follow from it.

One frozen value for a stock dense model and for an `sgate` folder alike. A config of an unsupported
family, or one whose values contradict each other, is refused here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from sgate_serve.architecture import config as values
from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.config_schema import check_config
from sgate_serve.architecture.family import (
    BLOCKS,
    CAUSAL_LM,
    DOWN,
    MLP_ROLES,
    OUTPUT,
    Axes,
)
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX, model_tensors
from sgate_serve.architecture.model_constants import ModelConstants
from sgate_serve.architecture.parts import (
    Part,
    Rows,
    correction_name,
    expert_parts,
    role_rows,
    router_axes,
)
from sgate_serve.architecture.pruned_parts import check_pruned
from sgate_serve.architecture.recurrent_layers import recurrent_axes, with_recurrent_layers
from sgate_serve.architecture.rope import layer_ropes
from sgate_serve.architecture.sgate_config import SgateBlock, layer_shapes
from sgate_serve.architecture.shapes import Lowered
from sgate_serve.architecture.shared_keys import check_shared_keys
from sgate_serve.architecture.windows import layer_windows


@dataclass(frozen=True)
class ModelSpec(ModelConstants):
    """One model's architecture: its constants, and the names and shapes of its tensors."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> "ModelSpec":
        """Read a stock or `sgate` config; `source` names the file in errors.

        Raises CheckpointError for an unsupported family or contradicting values.
        """
        family = values.family_of(config, source)
        check_config(config, source, family)
        get, block = ConfigReader(config, source, family), SgateBlock.read(config)
        family = with_recurrent_layers(get, values.switched_family(get, family))
        values.check_sizes(get, family)
        num_layers, hidden = get.integer("num_hidden_layers"), get.integer("hidden_size")
        task = values.task_of(config, family, source)
        windows = tuple(layer_windows(get, family, num_layers))
        dense = tuple(values.dense_shapes(get, family, windows))
        layers = tuple(layer_shapes(dense, family, config, source))
        num_positions = get.integer("max_position_embeddings")
        head_dims = [layer.head_dim for layer in layers]
        spec = cls(
            family=family,
            task=task,
            layers=layers,
            hidden_size=hidden,
            norm_size=block.norm_size or hidden,
            vocab_size=get.integer("vocab_size"),
            num_positions=num_positions,
            num_types=get.integer("type_vocab_size", 0),
            num_labels=values.num_labels(config),
            head_units=block.head_units or hidden,
            tied_head=bool(get("tie_word_embeddings")) and task == CAUSAL_LM,
            biased_roles=frozenset(values.biased_roles(get, family)),
            has_norm_bias=values.has_norm_bias(get, family),
            outside=values.outside(get, family),
            on_top=values.task_head(get, family, task),
            norm_topk_prob=values.norm_topk_prob(get, family),
            routed_scaling=float(get("routed_scaling_factor", 1)),
            clamped_units=values.clamped_units(get, family),
            kernel=get.integer("linear_conv_kernel_dim", 0),
            input_width=values.input_size(get, family, "width"),
            input_vocab=values.input_size(get, family, "vocab"),
            norm_eps=float(get("norm_eps")),
            activation=str(get("hidden_act")),
            attention_scales=tuple(values.attention_scales(get, layers)),
            windows=windows,
            ropes=tuple(layer_ropes(get, family, windows, num_positions, head_dims)),
            attention_softcap=values.softcap(get, "attn_logit_softcapping"),
            logit_softcap=values.softcap(get, "final_logit_softcapping"),
            embedding_multiplier=float(get("embedding_multiplier", 1)),
            residual_multiplier=float(get("residual_multiplier", 1)),
            logit_divisor=float(get("logits_scaling", 1)),
            has_parallel_blocks=bool(get("use_parallel_residual", False)),
            first_position=get("pad_token_id") + 1 if family.has_padded_positions else 0,
            extra_biases=block.extra_biases,
            lowered=block.lowered,
        )
        spec.check(source)
        return spec

    def check(self, source: str) -> None:
        """Raise CheckpointError if head counts or widths contradict each other."""
        for index, layer in enumerate(self.layers):
            layer.check(f"{source}: layer {index}", rotates=self.ropes[index] is not None)
        check_shared_keys(self.layers, self.windows, source)
        check_pruned(self, source)

    def linear_shapes(self, index: int) -> dict[str, tuple[int, int]]:
        """Return the (out, in) dimensions of every role in a layer, lowered or not."""
        shapes = self.layers[index].linear_shapes(self.hidden_size)
        linears = self.family.linears_of(index)
        return {role: shape for role, shape in shapes.items() if role in linears}

    def modules(self, index: int) -> Mapping[str, tuple[str, ...]]:
        """Return the linear modules of a layer and the roles that each holds, in row order.

        In a mixture each module of an expert holds some units of its role: `parts`.
        """
        return self._modules[index]

    @cached_property
    def _modules(self) -> tuple[Mapping[str, tuple[str, ...]], ...]:
        family, found = self.family, list[Mapping[str, tuple[str, ...]]]()
        for index, layer in enumerate(self.layers):
            modules: dict[str, tuple[str, ...]] = {}
            for role in self.linear_shapes(index):
                if layer.experts and role in MLP_ROLES:
                    modules |= {part.module: (role,) for part in self.parts(index, role)}
                else:
                    modules[family.linear(index, role)] = family.fused_roles(index, role)
            found.append(modules)
        return tuple(found)

    def parts(self, index: int, role: str) -> list[Part]:
        """Return the modules that hold a role, in the order of its units; mostly a single one."""
        layer, family = self.layers[index], self.family
        if not layer.experts or role not in MLP_ROLES:
            height, width = self.linear_shapes(index)[role]
            whole = slice(0, width if role in (OUTPUT, DOWN) else height)
            rows = partial(self.role_rows, index, role)
            return [Part(family.linear(index, role), rows, whole, index)]
        return expert_parts(family, layer, self.hidden_size, index, role)

    def expert_of(self, module: str) -> int | None:
        """Return the number of the expert that a linear is in; the shared one is the last."""
        part = self._expert_parts.get(module)
        return None if part is None else part.expert

    def share_read(self, module: str, tokens: int = 1) -> float:
        """Return how likely some of `tokens` use a linear, if experts are chosen equally often."""
        part = self._expert_parts.get(module)
        layer = None if part is None else self.layers[part.layer]
        if part is None or layer is None or part.expert == len(layer.experts):
            return 1.0
        return 1 - (1 - layer.top_k / len(layer.experts)) ** tokens

    @cached_property
    def _expert_parts(self) -> Mapping[str, Part]:
        return {
            part.module: part
            for index, layer in enumerate(self.layers)
            for role in self.linear_shapes(index)
            for part in self.parts(index, role)
            if part.expert is not None
        }

    def module_names(self) -> dict[str, int]:
        """Return every linear inside the blocks, and its layer."""
        return {name: index for index in range(len(self.layers)) for name in self.modules(index)}

    def role_rows(self, index: int, role: str) -> Rows:
        """Return which rows of its module a role has, before any lowering."""
        return role_rows(self.family, self.layers[index], self.hidden_size, index, role)

    def module_rows(self, index: int, module: str) -> Rows:
        """Return the rows of a module in the order of its roles, one role after another."""
        return np.concatenate([self.role_rows(index, role) for role in self.modules(index)[module]])

    def module_shape(self, index: int, module: str) -> tuple[int, int]:
        """Return the (out, in) shape that a module stores."""
        shapes, roles = self.linear_shapes(index), self.modules(index)[module]
        part = self._expert_parts.get(module)
        if part is not None:
            width = part.units.stop - part.units.start
            return (self.hidden_size, width) if roles == (DOWN,) else (width, self.hidden_size)
        lowered = self.lowered.get(module, Lowered())
        rows = sum(shapes[role][0] for role in roles)
        columns = shapes[roles[0]][1]
        return (
            rows if lowered.rows is None else lowered.rows,
            columns if lowered.columns is None else lowered.columns,
        )

    def has_bias(self, layer: int, role: str) -> bool:
        """Say whether the linear of `role` carries a bias, its own or one that pruning added."""
        # A recurrent layer has none, but for those that pruning added. Experts get none by that.
        is_own = role in MLP_ROLES or not self.layers[layer].is_recurrent
        has_experts = role in MLP_ROLES and self.layers[layer].experts
        added = not has_experts and self.family.linear(layer, role) in self.extra_biases
        return (is_own and role in self.biased_roles) or added

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of every tensor that a folder of this spec must hold."""
        return model_tensors(self)

    def axes_outside(self) -> dict[str, tuple[str, ...]]:
        """Return the named axes of every tensor that is not in a layer."""
        return {**self.outside, **self.head.tensors}

    def router_tensors(self, index: int) -> dict[str, Axes]:
        """Return the tensors that choose and weigh the experts of a layer, with their axes."""
        return router_axes(self.family, self.layers[index], index)

    def named_tensors(self, index: int) -> dict[str, Axes]:
        """Return the tensors of a layer besides norms and linears of blocks, with their axes."""
        family, name = self.family, self.family.layer_name(index)
        own = {} if family.layer_inputs is None else family.layer_inputs.tensors
        found: dict[str, Axes] = {f"{name}.{tensor}": axes for tensor, axes in own.items()}
        found |= self.router_tensors(index)
        return found | recurrent_axes(family, self.layers[index], index)

    def correction(self, index: int) -> str | None:
        """Return the tensor that a layer's router adds to its scores for the choice, if any."""
        return correction_name(self.family, self.layers[index], index)

    def sinks(self, index: int) -> str | None:
        """Return the tensor of a layer's attention with a logit for each head, if it has one."""
        name, layer = self.family.sinks, self.layers[index]
        return f"{self.family.layer_name(index)}.{name}" if name and layer.num_heads else None

    def norms(self, index: int) -> list[str]:
        """Return the norms over the residual stream that a layer has.

        The norms of a skipped block are gone, except norms on the sum ("post"): LN(x + 0) is not x.
        """
        family, layer, names = self.family, self.layers[index], list[str]()
        for block in BLOCKS:
            if layer.has(block) or family.residual == "post":
                names += family.block_norms(index, block)
        return names

    def head_norm_sizes(self, index: int) -> dict[str, int]:
        """Return the norms on query and key of a layer with attention, and the length of each.

        They span one head, or all heads of the layer.
        """
        family, layer = self.family, self.layers[index]
        counts = (layer.num_heads, layer.num_kv_heads) if family.has_joint_head_norms else (1, 1)
        has_norms = layer.num_heads and not layer.is_recurrent
        sizes = [count * layer.head_dim for count in counts if has_norms]
        sizes = sizes if layer.has_keys else sizes[:1]
        names = (f"{family.layer_name(index)}.{norm}" for norm in family.head_norms)
        return dict(zip(names, sizes, strict=False))

    @property
    def num_gateable(self) -> int:
        """Count the weights of the linears inside the blocks: removed fractions refer to these."""
        return sum(self.layer_weights(index) for index in range(len(self.layers)))

    def layer_weights(self, index: int) -> int:
        """Count the weights that the linears of one layer store."""
        shapes = (self.module_shape(index, module) for module in self.modules(index))
        return sum(rows * columns for rows, columns in shapes)

    @property
    def num_parameters(self) -> int:
        """Count the trained numbers; index vectors do not count."""
        indices = (f".{IN_INDEX}", f".{OUT_INDEX}")
        shapes = self.tensor_shapes().items()
        return sum(math.prod(shape) for name, shape in shapes if not name.endswith(indices))
