"""Models in transformers and fp32: the oracle of verification, and converted folders on torch.

The oracle is the masked dense model, with its weights rounded as they are stored.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from converters.masked import MaskedCheckpoint
from converters.rewrite import rewritten_tensors, tensor_headers
from converters.to_hf import hf_config
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.engines.model_protocols import Floats, Tokens
from sgate_serve.models import AUTO_CLASSES
from sgate_serve.models.experts import without_router_loss
from sgate_serve.models.loading import (
    built_model,
    config_from,
    config_of,
    fill,
    load_model,
    loaded_by,
)
from sgate_serve.models.names import name_in
from sgate_serve.models.progress import hidden_bars
from sgate_serve.models.refusals import refusals_named
from sgate_serve.models.routers import RoutingMargins, close_experts
from sgate_serve.models.wholes import load_text_part
from sgate_serve.onnx_format.precision import FP32, PRECISIONS
from sgate_serve.plan import Plan
from sgate_serve.plan.placement import pruned_spec

# What a config says of the folder that it was loaded from, of the stored type (all is fp32), and of
# a tied head, which the stored tensors decide.
ORIGIN = frozenset({"_name_or_path", "transformers_version", "dtype", "tie_word_embeddings"})


# Of the largest logit of a router; sums in another order differ by about a tenth of it.
CLOSE_CHOICE = 1e-5


class TorchModel:
    """A `LogitsModel` (engines/model_protocols.py) in transformers, in fp32."""

    name = "torch"
    version = str(torch.__version__)
    precision = PRECISIONS[FP32]

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        self.model, self.spec = model.float().eval(), spec
        self._margins = RoutingMargins(self.model, spec) if spec.family.mixture else None

    @classmethod
    def masked_dense(cls, masked: MaskedCheckpoint) -> "TorchModel":
        """Build the dense architecture and fill it with masked weights, one tensor at a time."""
        return cls(dense_model(masked), masked.spec)

    @classmethod
    def converted(cls, folder: Path) -> "TorchModel":
        """Load a converted or plain folder; int8 weights are dequantized."""
        checkpoint = Checkpoint.open(folder)
        return cls(load_model(checkpoint), checkpoint.spec)

    @classmethod
    def by_transformers(cls, base: Checkpoint) -> "TorchModel":
        """Load a base as its auto class does alone: transformers reads the config and the tensors.

        Of a whole it is the class of the whole, and its text part is taken. Attention is eager,
        which applies every setting of a config. Raises what transformers raises for a folder that
        it cannot load.
        """
        kernels = {"attn_implementation": "eager"}
        if base.spec.family.mixture is not None:
            kernels["experts_implementation"] = "eager"
        auto = AUTO_CLASSES[base.spec.task]
        load = auto.from_pretrained if base.whole is None else load_text_part
        with hidden_bars():
            return cls(loaded_by(load, base, **kernels), base.spec)

    @classmethod
    def rewritten(cls, masked: MaskedCheckpoint, plan: Plan) -> "TorchModel":
        """Build the model that the plan rewrites the masked one into, unquantized and unwritten."""
        spec, config = pruned_spec(plan, masked.spec), config_from(hf_config(masked, plan))
        names = (header.name for header in tensor_headers(masked, plan))
        tensors = zip(names, rewritten_tensors(masked, plan), strict=True)
        return cls(built_model(config, spec, tensors), spec)

    def settings(self) -> dict[str, Any]:
        """Return the config of the model as transformers holds it, without its origin."""
        config: dict[str, Any] = self.model.config.to_dict()
        return {name: value for name, value in config.items() if name not in ORIGIN}

    def tensor_digests(self) -> dict[str, str]:
        """Return a sha256 of every parameter and buffer, tied ones under each of their names.

        A pooler that was not stored has random weights and is left out.
        """
        tensors = {**self.model.state_dict(), **dict(self.model.named_buffers())}
        family, task = self.spec.family, self.spec.task
        for name in family.tasks[task].tensors if self.spec.lacks_pooler else ():
            del tensors[name.removeprefix(f"{family.prefix}.")]
        return {
            name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in tensors.items()
        }

    def residuals(self, tokens: Tokens, types: Tokens | None = None) -> list[Floats]:
        """Return the residual stream [T, H] after each layer, the last before the final norm."""
        streams: list[Floats] = []

        def record(module: Any, args: Any, hidden: torch.Tensor) -> None:
            streams.append(hidden[0].numpy().copy())

        name = self.spec.family.layer.rpartition(".")[0].removeprefix(f"{self.spec.family.prefix}.")
        layers = self.model.base_model.get_submodule(name)
        handles = [layer.register_forward_hook(record) for layer in layers]
        try:
            self.logits(tokens, types)
        finally:
            for handle in handles:
                handle.remove()
        return streams

    def logits(self, tokens: Tokens, types: Tokens | None = None) -> Floats:
        """Return the outputs for one prompt of T token ids.

        Logits [T, V] of a causal LM, [1, labels] of a classifier; the last hidden states [T, H] of
        a base model, followed by its pooled state [1, H] if it has a pooler.
        """
        with torch.inference_mode():
            options: dict[str, Any] = without_router_loss(self.model.config)
            if not self.spec.is_encoder:
                options["use_cache"] = False
            if types is not None:
                options["token_type_ids"] = torch.from_numpy(types)[None]
            output = self.model(torch.from_numpy(tokens)[None], **options)
        if "logits" in output:
            logits: Floats = output.logits.reshape(-1, output.logits.shape[-1]).numpy()
            return logits
        # A pooler that was not stored has random weights.
        pooled = None if self.spec.lacks_pooler else output.get("pooler_output")
        hidden = output.last_hidden_state[0]
        rows: Floats = (hidden if pooled is None else torch.cat([hidden, pooled])).numpy()
        return rows

    def doubtful(self, num_rows: int) -> NDArray[np.bool_]:
        """Flag the rows of the last outputs that follow from a close choice among experts.

        Rounding may choose the other expert, whose output is another one altogether. A choice
        matters to its own token and to all after it.
        """
        least = None if self._margins is None else self._margins.least
        if least is None:
            return np.zeros(num_rows, np.bool_)
        close = np.logical_or.accumulate((least < CLOSE_CHOICE).numpy())
        return close if len(close) == num_rows else np.full(num_rows, close[-1])

    def close(self) -> None:
        """Drop the model."""
        del self.model


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def dense_model(masked: MaskedCheckpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the masked dense model as a stock transformers one, in fp32 or another dtype."""
    config: Any = config_of(masked.base)
    if getattr(config, "sgate", None):
        # The masked model has all dimensions: those that index vectors omit are zero.
        config.sgate = {k: v for k, v in config.sgate.items() if k != "lowered"}
    if masked.base.spec.tied_head and not masked.spec.tied_head:
        config.tie_word_embeddings = False
    with no_init_weights(), refusals_named(masked.base.folder / CONFIG_FILE):
        model: PreTrainedModel = AUTO_CLASSES[masked.spec.task].from_config(config, dtype=dtype)
    model.tie_weights()
    _add_biases(model, masked)
    fill(model, masked.spec, ((name, masked.read(name)) for name in masked.spec.tensor_shapes()))
    for router, closed in masked.closed_experts.items():
        own = name_in(model, masked.spec.family, router)
        close_experts(model.get_submodule(own), torch.from_numpy(closed))
    return model


def _add_biases(model: PreTrainedModel, masked: MaskedCheckpoint) -> None:
    prefix = f"{masked.spec.family.prefix}."
    for name in masked.spec.extra_biases - masked.base.spec.extra_biases:
        own = name if model.base_model is not model else name.removeprefix(prefix)
        linear = model.get_submodule(own)
        linear.bias = torch.nn.Parameter(linear.weight.new_zeros(linear.weight.shape[0]))
