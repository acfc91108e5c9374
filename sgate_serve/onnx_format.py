"""Names that the ONNX graph writer and the ONNX engine agree on; docs/format.md explains them.

`b` rows, `s` new tokens per row, `n` positions whose logits are wanted. Past and present of a layer
are [b, kv_heads, length, head width]; an engine binds both to one buffer.
"""

ONNX_DIR = "onnx"  # inside a deployable folder
GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
FORMAT_VERSION = 1

# Keys of the graph's metadata_props; the values are strings.
META_VERSION = "sgate.onnx_version"
META_FAMILY = "sgate.family"
META_FINGERPRINT = "sgate.fingerprint"
META_CAPACITY = "sgate.capacity"
META_NUM_LAYERS = "sgate.num_layers"

INPUT_IDS = "input_ids"  # [b, s] int64
SEQLENS_K = "seqlens_k"  # [b] int32: tokens of the row after this call, minus 1
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"  # [] int32: the largest of them, before minus 1
QUERY_SEQLENS = "query_seqlens"  # [b] int32: how many of the s tokens are real; 0 = idle row
LOGIT_POSITIONS = "logit_positions"  # [b, n] int64: indices into s
LOGITS = "logits"  # [b, n, vocab] float32

PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."


def residual_name(layer: int) -> str:
    """Return the value that holds the residual stream after `layer`, [b, s, hidden] float32.

    Every layer has one: where a layer does nothing it repeats the previous stream.
    """
    return f"layer.{layer}.residual"
