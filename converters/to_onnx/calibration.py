"""The text that graphs in 4 bits are rounded for: the topics of Python's own help.

It is English prose, tables and code, and every Python has it, so that a conversion needs no data.
"""

import logging
from pydoc_data.topics import topics

from converters.to_onnx.rope import max_positions
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import Blocks, end_token, evenly_spaced, pack, read_tokenizer

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
NUM_BLOCKS, SEQ_LEN = 32, 256


def calibration_blocks(checkpoint: Checkpoint) -> Blocks | None:
    """Return tokens [n, s] of the text, or None, with a warning, for a model without tokenizer."""
    file = checkpoint.folder / TOKENIZER_FILE
    if not file.is_file():
        logger.warning(
            "%s is missing: weights are rounded to 4 bits without regard to what they multiply, "
            "which loses more of the model; put the tokenizer there and build the graph again",
            file,
        )
        return None
    tokenizer = read_tokenizer(file, checkpoint.spec.vocab_size)
    seq_len = min(SEQ_LEN, max_positions(checkpoint.spec))
    documents = [text for _, text in sorted(topics.items())]
    blocks = pack(documents, tokenizer, end_token(checkpoint.config), seq_len)
    return evenly_spaced(blocks, NUM_BLOCKS)
