"""Write a dense Llama folder as GGUF and quantize it with llama.cpp.

`python -m benchmarks.contenders.gguf_files FOLDER OUT` runs in llama.cpp's interpreter and writes
OUT/q8_0/model.gguf and OUT/q4_0/model.gguf. llama.cpp pairs rotary dimensions differently; because
the weights are noise and the speed is the same, the rows of query and key are not reordered.
"""

import sys
from pathlib import Path

import gguf
import llama_cpp as lib
import numpy as np

from benchmarks.contenders.llama_cpp import FILE
from sgate_serve.checkpoint.reader import Checkpoint

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
TYPES = {"q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name for a tensor of a Llama checkpoint."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write_f16(model: Checkpoint, path: Path) -> None:
    """Write the model as GGUF, matrices in fp16 and vectors in fp32."""
    spec = model.spec
    shape = spec.layers[0]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(len(spec.layers))
    writer.add_feed_forward_length(shape.mlp_units)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name in model.tensors:
        array = model.read(name)
        dtype = np.float32 if array.ndim == 1 else np.float16
        writer.add_tensor(gguf_name(name), array.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "f16.gguf"
    write_f16(Checkpoint.open(folder), whole)
    for name, kind in TYPES.items():
        (out / name).mkdir(exist_ok=True)
        params = lib.llama_model_quantize_default_params()
        params.ftype = kind
        target = out / name / FILE
        status = lib.llama_model_quantize(str(whole).encode(), str(target).encode(), params)
        assert status == 0, f"llama_model_quantize returned {status}"
    whole.unlink()


if __name__ == "__main__":
    main()
