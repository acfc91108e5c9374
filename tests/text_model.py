"""A byte-level BPE tokenizer trained on a few sentences, and its files for a model folder."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sgate_serve.text.chat_template import ChatTemplate

SENTENCES = (
    "the cat sat on the mat and the dog sat on the log",
    "a gate that is closed lets nothing through",
    "猫がマットの上に座った 你好世界",
    "rockets 🚀 and smiles 🙂 and families 👩‍👩‍👧",
    "naïve façade, señor, Straße",
)
BOS, EOS = "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'developer' %}{{ raise_exception('no developer here') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Train the tokenizer, which puts `<s>` before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def special_id(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of `<s>` or `</s>`."""
    index = tokenizer.token_to_id(text)
    assert index is not None
    return index


def write_tokenizer(folder: Path, **config: Any) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json, the latter with the fields of `config`."""
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    # The model may be of a family whose own class would read tokenizer.json otherwise.
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    eos = {"__type": "AddedToken", "content": EOS, "normalized": False, "special": True}
    values = {**plain, "bos_token": BOS, "eos_token": eos, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return tokenizer


def chat_template() -> ChatTemplate:
    """Compile the chat template like that of a model folder."""
    template = ChatTemplate.load(Path(), {"chat_template": CHAT_TEMPLATE}, {"bos_token": BOS})
    assert template is not None
    return template


def pair_tokenizer() -> Tokenizer:
    """Return an encoder's tokenizer: `<s> text </s>`, with the second text as segment 1."""
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} $B:1 {EOS}:1",
        special_tokens=[(text, special_id(tokenizer, text)) for text in (BOS, EOS)],
    )
    return tokenizer
