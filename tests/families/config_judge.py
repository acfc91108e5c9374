"""transformers as the judge of a config: the outputs of its model, and those of our graph.

Both have the same weights: every tensor's values follow from its name and shape. Our side reads the
config by itself, writes the ONNX graph and runs it; graphs are kept by the spec they express.
"""

import json
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from converters.stacking import stacked_headers
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import TensorHeader
from sgate_serve.loaders.logits import load_onnx
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.models import AUTO_CLASSES

Outputs = NDArray[np.float32]
Config = dict[str, Any]
VOCABULARY = 31
# Longer than every window here.
TOKENS = np.array([5, 9, 3, 17, 8, 30, 9, 11, 2, 26, 14, 7, 12])

SIZES: Config = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": None,
    "num_labels": 3,
}
DECODER: Config = SIZES | {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 100.0,
}
GROUPED: Config = DECODER | {"head_dim": 16}
WINDOW = 4
GEMMA: Config = GROUPED | {"sliding_window": WINDOW, "query_pre_attn_scalar": 10}
HYBRID: Config = GROUPED | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 8,
    "full_attention_interval": 2,
    # Norms over outputs that are nearly zero would show the rounding of transformers.
    "rms_norm_eps": 1e-3,
}
HYBRID_EXPERTS: Config = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 16,
}
ENCODER: Config = {
    k: v for k, v in DECODER.items() if k not in ("num_key_value_heads", "rope_theta")
}
BASES: dict[str, Config] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "qwen2": DECODER
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": GROUPED
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "smollm3": DECODER
    | {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layer_interval": 2},
    "granite": DECODER
    | {"embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7},
    "starcoder2": DECODER | {"sliding_window": WINDOW},
    "mixtral": GROUPED | {"num_local_experts": 4, "sliding_window": WINDOW},
    "qwen2_moe": DECODER
    | {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 16}
    | {"num_experts_per_tok": 2, "mlp_only_layers": [1]}
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3_moe": GROUPED
    | {"num_experts": 8, "moe_intermediate_size": 12}
    | {"num_experts_per_tok": 2, "mlp_only_layers": [1]}
    | {"use_sliding_window": True, "sliding_window": WINDOW},
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID | HYBRID_EXPERTS,
    "qwen3_next": HYBRID | HYBRID_EXPERTS | {"num_experts": 10, "mlp_only_layers": [1]},
    "glm4_moe": GROUPED
    | {"n_routed_experts": 8, "moe_intermediate_size": 12, "num_nextn_predict_layers": 1}
    | {"num_experts_per_tok": 2, "routed_scaling_factor": 1.5},
    "gpt_oss": GROUPED
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": WINDOW}
    | {"swiglu_alpha": 1.2, "swiglu_limit": 0.8, "rope_parameters": {"rope_type": "default"}},
    "phi3": DECODER | {"sliding_window": WINDOW},
    "gemma2": GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
    "gemma3_text": GEMMA | {"sliding_window_pattern": 2, "rope_local_base_freq": 20.0},
    "gemma4_text": GROUPED
    | {"sliding_window": WINDOW, "global_head_dim": 8, "num_global_key_value_heads": 1}
    | {"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "enable_moe_block": True}
    | {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 12},
    "olmo2": DECODER,
    "olmo3": DECODER | {"num_hidden_layers": 4, "sliding_window": WINDOW},
    "gpt2": SIZES | {"n_embd": 32, "n_inner": 24, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": ENCODER | {"rotary_emb_base": 100.0, "rotary_pct": 1.0},
    "bert": ENCODER,
    "roberta": ENCODER,
    "modernbert": ENCODER | {"local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2},
    "distilbert": SIZES
    | {"dim": 32, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
}


def config_of(family: str, task: str | None = None, **changes: Any) -> Config:
    """Return a small config.json of a family, with some fields changed."""
    fields = {"model_type": family, **BASES[family]}
    if task is not None:
        fields["architectures"] = [FAMILIES[family].tasks[task].model_class]
    if "id2label" in changes:
        del fields["num_labels"]
    return fields | changes


def theirs(config: Config, task: str, folder: Path) -> Outputs:
    """Return the outputs of the model that transformers builds; raise whatever it raises."""
    write_config(config, folder)
    loaded = AutoConfig.from_pretrained(folder, local_files_only=True)
    if getattr(loaded, "attn_logit_softcapping", None):
        loaded._attn_implementation = "eager"
    loaded._experts_implementation = "eager"
    with no_init_weights():
        model: PreTrainedModel = AUTO_CLASSES[task].from_config(loaded, dtype=torch.float32)
    model.tie_weights()
    if FAMILIES[config["model_type"]].mixture is not None:
        model = stored_and_loaded(model, task, folder)
    else:
        fill(model)
    model.eval()
    with torch.no_grad():
        output = model(torch.from_numpy(TOKENS)[None])
    if "logits" in output:
        return np.asarray(output.logits.reshape(-1, output.logits.shape[-1]).numpy())
    return np.asarray(output.last_hidden_state[0].numpy())


def stored_and_loaded(model: PreTrainedModel, task: str, folder: Path) -> PreTrainedModel:
    """Return the model after transformers wrote it and read our values under the names in its file.

    Its classes hold experts otherwise than files do.
    """
    model.config._attn_implementation = "eager"  # sdpa refuses to be saved with some settings
    model.save_pretrained(folder / "stored")
    file, prefix = folder / "stored" / SINGLE_FILE, f"{model.base_model_prefix}."
    names = {name: value.shape for name, value in load_file(file).items()}
    own = {name: name if model.base_model is not model else f"{prefix}{name}" for name in names}
    save_file({name: weight(own[name], shape) for name, shape in names.items()}, file)
    loaded: PreTrainedModel = AUTO_CLASSES[task].from_pretrained(
        folder / "stored", dtype=torch.float32, experts_implementation="eager"
    )
    return loaded


def fill(model: PreTrainedModel) -> None:
    """Set every parameter to the values of its name, as a model with a head calls it."""
    prefix = f"{model.base_model_prefix}." if model.base_model is model else ""
    with torch.no_grad():
        scales = [one for one in model.named_buffers() if one[0].endswith("layer_scalar")]
        for name, parameter in (*model.named_parameters(), *scales):
            values = weight(f"{prefix}{name}", tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values))


@cache
def weight(name: str, shape: tuple[int, ...]) -> Outputs:
    """Return random values: norms around 1 (or 0, for Gemma, which is as good), matrices wider."""
    rng = np.random.default_rng(zlib.crc32(f"{name}{shape}".encode()))
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.2, shape).astype(np.float32)


class OurReading:
    """Our outputs for configs; every spec is computed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, Outputs] = {}

    def __call__(self, config: Config) -> Outputs:
        """Return the outputs of our graph; raise SgateError if we refuse the config."""
        spec = ModelSpec.from_config(config, "config.json")
        padding = config.get("pad_token_id") if spec.task == "classification" else None
        own = (spec.family.name, spec.family.head_norms)
        key = repr((replace(spec, family=FAMILIES["llama"]), own, padding))
        if key not in self.known:
            tensors = {name: weight(name, shape) for name, shape in stored_shapes(spec).items()}
            folder = self.root / f"graph-{len(self.known)}"
            write_config(config, folder)
            save_file(tensors, folder / SINGLE_FILE)
            if spec.for_torch_alone is not None:
                # The shapes of the tensors are ours, and transformers takes no others.
                self.known[key] = TorchModel.converted(folder).logits(TOKENS)
                return self.known[key]
            engine = load_onnx(Checkpoint.open(folder))
            self.known[key] = engine.logits(TOKENS)
            engine.close()
        return self.known[key]


def stored_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the tensors that stock files of a spec have."""
    headers = [TensorHeader(name, "F32", shape) for name, shape in spec.tensor_shapes().items()]
    return {header.name: header.shape for header in stacked_headers(headers, spec.family)}


def write_config(config: Config, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
