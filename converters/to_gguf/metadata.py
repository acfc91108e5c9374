"""The keys of a GGUF file that say how llama.cpp computes the model."""

import gguf

from converters.to_gguf.tensors import FileModel
from sgate_serve.architecture.spec import ModelSpec


def context_length(spec: ModelSpec) -> int:
    """Return the longest text for which llama.cpp computes the model: it has no sliding windows."""
    return min([spec.max_positions, *(window for window in spec.windows if window is not None)])


def add_metadata(writer: gguf.GGUFWriter, model: FileModel) -> None:
    """Add the sizes and constants of a model; those that differ between layers are lists."""
    spec, first = model.spec, model.layers[0].shape
    rope = spec.ropes[0]
    assert rope is not None
    writer.add_type("model")
    writer.add_file_type(model.storage.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(context_length(spec))
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(len(model.layers))
    writer.add_vocab_size(spec.vocab_size)
    writer.add_feed_forward_length(_sizes([layer.shape.mlp_units for layer in model.layers]))
    writer.add_head_count(_sizes([layer.shape.num_heads for layer in model.layers]))
    writer.add_head_count_kv(_sizes([layer.shape.num_kv_heads for layer in model.layers]))
    writer.add_key_length(first.head_dim)
    writer.add_value_length(first.head_dim)
    writer.add_rope_dimension_count(first.head_dim)
    writer.add_rope_freq_base(float(rope.settings["rope_theta"]))
    # With `ModelSpec.norm_gain` in the weights, the norm divides as before residual removal.
    writer.add_layer_norm_rms_eps(spec.norm_eps * spec.norm_gain**2)


def _sizes(sizes: list[int]) -> int | list[int]:
    return sizes[0] if len(set(sizes)) == 1 else sizes
