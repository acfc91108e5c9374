"""The vocabulary of a codec as llguidance wants it: the bytes of each token, and one for the end.

The end of a text has an id of its own, one beyond the model's, because which tokens stop a request
is the request's affair. Special tokens write no text.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sgate_serve.text.tokenization import TextCodec

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Begins no token of more bytes, so that what follows is encoded as in the middle of a text.
MARK = "\x02"


class GrammarVocabulary:
    """The members that llguidance's TokenizerWrapper reads. `size` is that of the model.

    Ids that the tokenizer does not have write nothing, so no grammar allows them.
    """

    def __init__(self, codec: TextCodec, size: int) -> None:
        written = [codec.text_bytes(token) for token in range(size)]
        names = [codec.token_bytes(token) for token in range(size)]
        self.eos_token_id = size
        self.bos_token_id = None
        self.tokens = [*names, b"<end>"]
        self.special_token_ids = [
            *(token for token in range(size) if names[token] and not written[token]),
            size,
        ]
        self.longest_first: Callable[[str], list[int]] = lambda text: []
        self._codec = codec

    def __call__(self, text: bytes) -> list[int]:
        """Return the tokens that write `text`, as the model would: a grammar may leave no choice.

        A tokenizer that changes texts, or sees a special token, does not write them; then the
        longest token that fits is taken each time.
        """
        ids = self._codec.encode(MARK + text.decode(), add_special_tokens=False)
        start, length = len(ids), 0
        while start and length < len(text):
            start -= 1
            length += len(self._codec.text_bytes(ids[start]))
        if b"".join(map(self._codec.text_bytes, ids[start:])) == text:
            return [*ids[start:]]
        return self.longest_first(text.decode())


def guidance_tokenizer(codec: TextCodec, size: int) -> "LLTokenizer":
    """Return llguidance's view of a codec, for a model of `size` tokens."""
    from llguidance import LLTokenizer, TokenizerWrapper

    vocabulary = GrammarVocabulary(codec, size)
    # Both steps hold the interpreter's lock; other threads run between them.
    plain = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=size + 1, slices=[])
    vocabulary.longest_first = plain.greedy_tokenize
    return plain.with_slices(LLTokenizer.general_slices())
