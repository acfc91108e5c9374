"""Small tokenizers of every kind among our families, as `tokenizer.json` has them."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = "the cat sat on a mat HELLO World Naïve façade don't I'm we've it's 你好 座った 🚀 x1 2024"
CORPUS = [
    f"{' '.join(random.Random(seed).sample(WORDS.split(), 9))} . , ! ? ' \n" for seed in range(30)
]
SPACE = "\u2581"


def frame(single: str, pair: str, tokenizer: Tokenizer, *names: str) -> Any:
    """A post-processor that puts special tokens around texts."""
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def byte_fallback(*special: str) -> Tokenizer:
    """Pieces of characters with bytes for the rest, and `<s>` before a text: Llama 2, Gemma."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", SPACE)
    trainer = trainers.BpeTrainer(vocab_size=260, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE(
            {name: index for index, name in enumerate(names)},
            [tuple(merge) for merge in model["merges"]],
            unk_token=special[0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(list(special))
    start = special[1]
    tokenizer.post_processor = frame(f"{start} $A", f"{start} $A {start}:1 $B:1", tokenizer, start)
    return tokenizer


def llama() -> Tokenizer:
    return byte_fallback("<unk>", "<s>", "</s>")


def gemma() -> Tokenizer:
    return byte_fallback("<unk>", "<bos>", "<eos>", "<pad>", "<mask>", "<start_of_turn>")


def byte_level(*special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt2() -> Tokenizer:
    return byte_level("<|endoftext|>")


def qwen2() -> Tokenizer:
    return byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def llama3() -> Tokenizer:
    tokenizer = byte_level("<|begin_of_text|>", "<|eot_id|>")
    start = "<|begin_of_text|>"
    tokenizer.post_processor = frame(f"{start} $A", f"{start} $A {start}:1 $B:1", tokenizer, start)
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = byte_level("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def bert() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *map(str.lower, CORPUS)], trainer)
    tokenizer.post_processor = frame(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", tokenizer, "[CLS]", "[SEP]"
    )
    return tokenizer


def xlm_roberta() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = frame(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", tokenizer, "<s>", "</s>"
    )
    return tokenizer


# Tokenizer → model type and `tokenizer_class` of the folders that have it.
KINDS: Mapping[str, tuple[Callable[[], Tokenizer], str, str | None]] = {
    "llama": (llama, "llama", "LlamaTokenizer"),
    "llama fast": (llama, "llama", "LlamaTokenizerFast"),
    "llama 3": (llama3, "llama", "PreTrainedTokenizerFast"),
    "llama of no class": (llama, "llama", None),
    "mistral": (llama, "mistral", "LlamaTokenizer"),
    "phi3": (llama, "phi3", "LlamaTokenizer"),
    "qwen2": (qwen2, "qwen2", "Qwen2Tokenizer"),
    "qwen2 distilled": (llama3, "qwen2", "LlamaTokenizerFast"),
    "qwen3": (qwen2, "qwen3", "Qwen2TokenizerFast"),
    "qwen3 plain": (qwen2, "qwen3", "PreTrainedTokenizerFast"),
    "qwen3.5": (qwen2, "qwen3_5", "Qwen2Tokenizer"),
    "qwen3.5 text": (qwen2, "qwen3_5_text", None),
    "qwen3.5 text with another": (qwen2, "qwen3_5_text", "Qwen2Tokenizer"),
    "gemma2": (gemma, "gemma2", "GemmaTokenizer"),
    "gemma3": (gemma, "gemma3_text", None),
    "gpt2": (gpt2, "gpt2", "GPT2Tokenizer"),
    "gpt2 of no class": (gpt2, "gpt2", None),
    "llama with neox": (gpt2, "llama", "GPTNeoXTokenizerFast"),
    "roberta": (roberta, "roberta", "RobertaTokenizerFast"),
    "bert": (bert, "bert", "BertTokenizer"),
    "bert of no class": (bert, "bert", None),
    "bert plain": (bert, "bert", "PreTrainedTokenizerFast"),
    "bert with another": (xlm_roberta, "bert", "XLMRobertaTokenizer"),
    "distilbert": (bert, "distilbert", "DistilBertTokenizer"),
    "distilbert of no class": (bert, "distilbert", None),
}
