"""What llama.cpp computes from a GGUF file, through the C interface of llama-cpp-python.

`pip install llama-cpp-python`, which is compiled for some minutes; tested with 0.3.36. The cache is
fp32, so that only sums differ from a reference in fp32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

GGML_F32, NO_FLASH_ATTENTION = 0, 0


@contextmanager
def loaded(path: Path) -> Iterator[Any]:
    lib.llama_backend_init()
    lib.llama_log_set(_silence, None)
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    assert model, f"llama.cpp does not load {path}"
    yield model
    lib.llama_model_free(model)


def llama_cpp_logits(path: Path, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits [T, V] of one prompt."""
    with loaded(path) as model:
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = len(tokens), 1, 1
        params.type_k = params.type_v = GGML_F32
        params.flash_attn_type = NO_FLASH_ATTENTION
        context = lib.llama_init_from_model(model, params)
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = int(token), index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = True
        assert lib.llama_decode(context, batch) == 0
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        stored = lib.llama_get_logits(context)
        logits = np.ctypeslib.as_array(stored, (len(tokens), size)).copy()
        lib.llama_batch_free(batch)
        lib.llama_free(context)
    return np.asarray(logits)


def llama_cpp_tokens(path: Path, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, with the special tokens in and around them."""
    with loaded(path) as model:
        vocabulary, found = lib.llama_model_get_vocab(model), []
        for text in texts:
            raw = text.encode()
            ids = (lib.llama_token * (len(raw) + 8))()
            count = lib.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), True, True)
            found.append(list(ids[:count]))
    return found


# Drops a line of llama.cpp's log.
_silence = lib.llama_log_callback(lambda level, text, data: None)
