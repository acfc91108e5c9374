"""Names that the ONNX graph writer and the ONNX engine share; docs/format.md explains them.

A call adds `t` tokens to `b` rows, at most `s` to any row, and returns the logits of `n` tokens.
Tokens of all rows are packed, [t, …], row by row; only attention uses [b, s, …]. Past and present
of a layer are [b, kv_heads, length, head width], and an engine binds both to one buffer. So it
does with the states of recurrent layers, which have a fixed size. Graphs that classify or embed
read each row whole and have neither.
"""

ONNX_DIR = "onnx"  # inside a deployable folder
GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
FORMAT_VERSION = 3

# What graphs are written for, and the domain of ONNX Runtime's own operators.
OPSET, IR_VERSION, MICROSOFT = 21, 10, "com.microsoft"

# Keys of the graph's metadata_props; the values are strings.
META_VERSION = "sgate.onnx_version"
META_FAMILY = "sgate.family"
META_FINGERPRINT = "sgate.fingerprint"
META_DIGEST = "sgate.digest"  # of the folder that the graph was built from
META_WEIGHTS_DIGEST = "sgate.weights_digest"  # of the file with the graph's weights
META_CAPACITY = "sgate.capacity"
META_NUM_LAYERS = "sgate.num_layers"
META_PRECISION = "sgate.precision"  # fp32, fp16, int8 or int4
META_BLOCK = "sgate.block"  # how many weights of a row share a scale; 0: no scales by block
META_IN_ROWS = "sgate.in_rows"  # "1" where most linears inside the blocks are in rows
META_RESCALED = "sgate.rescaled"  # "1" where norms are divided by powers of two
# Tokens of a row get the same logits in every call whose t and n are multiples of this.
META_ROW_MULTIPLE = "sgate.row_multiple"
META_KIND = "sgate.kind"
# Only in graphs that classify or embed; a missing padding id is "".
META_VOCAB_SIZE = "sgate.vocab_size"
META_NUM_TYPES = "sgate.num_types"
META_PADDING_ID = "sgate.padding_id"
META_LOGIT_TOKEN = "sgate.logit_token"
# Only where padding tokens have a position of their own, as in RoBERTa: the row of that position in
# the graph's table. Other tokens count from 0 and do not count padding tokens.
META_PADDING_POSITION = "sgate.padding_position"

# Kinds of graphs: next tokens, the logits of one token of each row, or states of all tokens.
GENERATE, CLASSIFY, EMBED = "generate", "classify", "embed"
# A classifier reads a row's first token, its last one before padding, or the mean of all.
FIRST, LAST, EVERY = "first", "last", "every"

INPUT_IDS = "input_ids"  # [t] int64
UNPACK_INDEX = "unpack_index"  # [b, s] int64: which of the t tokens is there; any for padding
PACK_INDEX = "pack_index"  # [t] int64: where each token is in [b * s]
SEQLENS_K = "seqlens_k"  # [b] int32: tokens of the row after this call, minus 1
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"  # [] int32: the largest of them, plus 1
QUERY_SEQLENS = "query_seqlens"  # [b] int32: how many of the s tokens are real; 0 = idle row
LOGIT_INDEX = "logit_index"  # [n] int64: indices into t; none if a classifier reads every token
POSITION_IDS = "position_ids"  # [t] int64: only in graphs with a table of positions
TOKEN_TYPE_IDS = "token_type_ids"  # [t] int64: only in graphs with a table of token types
LOGITS = "logits"  # [n, vocab or labels] float32
HIDDEN_STATES = "last_hidden_state"  # [t, hidden] float32: the output of a graph that embeds

# Attention needs past + s to fit a buffer, even for rows that add fewer than s tokens. So buffers
# and rotary tables are longer than a row can get, by the largest s.
MAX_CHUNK = 1024

PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."
# Of a recurrent layer: the last tokens that its convolution reads, [b, kernel - 1, channels], and
# what its heads hold, [b, heads, key width, value width], both float32.
PAST_STATE_PREFIX, PRESENT_STATE_PREFIX = "past_state.", "present_state."
RECENT, HEADS = "recent", "heads"


def present_name(past: str) -> str:
    """Return the output that is bound to the same memory as an input."""
    present = past.replace(PAST_PREFIX, PRESENT_PREFIX)
    return present.replace(PAST_STATE_PREFIX, PRESENT_STATE_PREFIX)


def residual_name(layer: int) -> str:
    """Return the name of the residual stream after `layer`, [t, hidden] float32.

    Every layer has one; a layer without blocks repeats the previous stream.
    """
    return f"layer.{layer}.residual"


def format_in_words(precision: str, block: int, is_in_rows: bool) -> str:
    """Say how a graph stores its weights, from its metadata."""
    if not block:
        return precision
    return f"{precision} in {'rows and ' if is_in_rows else ''}blocks of {block}"


def stored_text(graph: bytes, key: str) -> str | None:
    """Return a value of a graph file's metadata; None if the file does not have the key.

    Key and value are fields 1 and 2 of a protobuf message, each after its length; our values have
    fewer than 128 bytes. No ONNX library is needed.
    """
    start = b"\x0a" + bytes([len(key)]) + key.encode() + b"\x12"
    _, found, rest = graph.rpartition(start)
    return rest[1 : 1 + rest[0]].decode() if found else None
