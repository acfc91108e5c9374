"""The metadata of a graph: its format, its source, and the values that an engine needs."""

from sgate_serve.architecture.family import BASE, CAUSAL_LM, CLASSIFICATION, MEAN
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.precision import Precision

KINDS = {CAUSAL_LM: names.GENERATE, CLASSIFICATION: names.CLASSIFY, BASE: names.EMBED}


def graph_metadata(checkpoint: Checkpoint, capacity: int, precision: Precision) -> dict[str, str]:
    """Return the metadata_props of a graph that reads up to `capacity` positions."""
    spec, kind = checkpoint.spec, KINDS[checkpoint.spec.task]
    common = {
        names.META_VERSION: str(names.FORMAT_VERSION),
        names.META_KIND: kind,
        names.META_FAMILY: spec.family.name,
        names.META_FINGERPRINT: checkpoint.fingerprint,
        names.META_DIGEST: checkpoint.digest,
        names.META_CAPACITY: str(capacity),
        names.META_NUM_LAYERS: str(len(spec.layers)),
        names.META_PRECISION: precision.name,
        names.META_BLOCK: str(precision.block or 0),
        names.META_ROW_MULTIPLE: str(precision.row_multiple),
    }
    if kind == names.GENERATE:
        return common
    padding = checkpoint.config.get("pad_token_id")
    if spec.family.has_padded_positions:
        # After the rows of all other positions: see `Encoder.position_rows`.
        common |= {names.META_PADDING_POSITION: str(spec.max_positions)}
    return common | {
        names.META_VOCAB_SIZE: str(spec.vocab_size),
        names.META_NUM_TYPES: str(spec.num_types if spec.is_encoder else 0),
        names.META_PADDING_ID: "" if padding is None else str(padding),
        names.META_LOGIT_TOKEN: _logit_token(spec),
    }


def _logit_token(spec: ModelSpec) -> str:
    if spec.head.pooling == MEAN:
        return names.EVERY
    return names.FIRST if spec.is_encoder else names.LAST
