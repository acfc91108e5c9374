"""A tokenizer for models of noise, whose words are numbers; other engines' tools require one."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    vocab = {str(number): number for number in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0"}', encoding="utf-8"
    )
