"""The text that graphs in 4 bits are rounded for: the topics of Python's own help.

It is English prose, tables and code, and every Python has it, so that a conversion needs no data.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from converters.to_onnx.rope import max_positions
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.text.tokenizer_files import TOKENIZER_FILE
from sgate_serve.text.tokenizer_loading import load_tokenizer

logger = logging.getLogger(__name__)

NUM_BLOCKS, SEQ_LEN = 32, 256


def calibration_blocks(checkpoint: Checkpoint) -> NDArray[np.int64] | None:
    """Return tokens [n, s] of the text, or None, with a warning, for a model without tokenizer."""
    file = checkpoint.folder / TOKENIZER_FILE
    if not file.is_file():
        logger.warning(
            "%s is missing: weights are rounded to 4 bits without regard to what they multiply, "
            "which loses more of the model; put the tokenizer there and build the graph again",
            file,
        )
        return None
    from pydoc_data.topics import topics  # large, and needed for 4 bits alone

    tokenizer = load_tokenizer(checkpoint.folder).tokenizer
    texts = [text for _, text in sorted(topics.items())]
    tokens = [token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids]
    # A tokenizer may have more tokens than the model.
    known = [token for token in tokens if token < checkpoint.spec.vocab_size]
    seq_len = min(SEQ_LEN, max_positions(checkpoint.spec))
    num_blocks = len(known) // seq_len
    blocks = np.array(known[: num_blocks * seq_len], np.int64).reshape(num_blocks, seq_len)
    # Spread over all, as the first may be of a single topic.
    return blocks[:: max(1, num_blocks // NUM_BLOCKS)][:NUM_BLOCKS]
