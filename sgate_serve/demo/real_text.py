"""Text for the real model: Python's own help topics, and chats that the dense model wrote itself.

Both are on every machine that has Python and the model. What a chat model loses first is the form
of its answers, so half of what the pruned one recovers on is in that form.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.demo.corpus import is_held_out
from sgate_serve.demo.serving import ask
from sgate_serve.demo.sizes import RealSizes

TEXT_FILE, HELD_OUT_TEXT, HELD_OUT_CHAT = "train.jsonl", "eval.jsonl", "eval-chat.jsonl"

SUBJECTS = (
    "the sun", "bread", "a bicycle", "photosynthesis", "the moon", "a computer", "rain",
    "the Roman Empire", "honey bees", "a violin", "gravity", "coffee", "the ocean", "a library",
    "vaccines", "an earthquake", "chess", "the human heart", "a volcano", "recycling",
)  # fmt: skip
FORMS = (
    "What is {}?",
    "Write two sentences about {}.",
    "Why does {} matter to people?",
    "Explain {} to a child.",
)
QUESTIONS = (
    "What is the capital of Italy?", "What is the capital of Germany?", "What is 2 plus 3?",
    "Name three animals.", "Name four colors.", "Which planet is the largest?",
    "How many days are in a week?", "Who wrote Romeo and Juliet?", "What do cows eat?",
    "Say hello in French.", "What is the opposite of hot?", "Give me a tip for better sleep.",
    "How do I boil an egg?", "What language is spoken in Brazil?", "What is the boiling point of "
    "water?", "Write a short greeting for a birthday card.", "Who are you?", "What can you do?",
    "Is the earth flat?", "How can I learn to draw?",
)  # fmt: skip
# Neither trained on nor of the forms above; the first are those that the demo asks.
ASKED = (
    "What is the capital of France?",
    "Name three fruits.",
    "Write one sentence about the sea.",
    "How do I make a cup of tea?",
    "What is a dictionary in Python?",
    "Give me two reasons to exercise.",
)
HELD_OUT = (
    *ASKED,
    "What is the capital of Spain?",
    "Why do leaves change color in autumn?",
    "What is the purpose of a battery?",
    "Write a short message to thank a teacher.",
    "How does a refrigerator keep food cold?",
    "What should I pack for a week at the beach?",
)


def write_text(writer: FolderWriter, dense: Path, url: str, sizes: RealSizes) -> None:
    """Write training and held-out text: a document per help topic, and one per chat.

    `url` is that of a server of the model in the folder `dense`.
    """
    topics = help_topics(sizes.topic_characters)
    questions = training_prompts()[: sizes.prompts]
    chats = own_chats(dense, url, [*questions, *HELD_OUT], sizes.max_tokens)
    trained = [text for text in topics if not is_held_out(text)]
    _write(writer, TEXT_FILE, [*trained, *chats[: len(questions)]])
    _write(writer, HELD_OUT_TEXT, [text for text in topics if is_held_out(text)])
    _write(writer, HELD_OUT_CHAT, chats[len(questions) :])


def help_topics(characters: int) -> list[str]:
    """Return the beginnings of what `help()` says on Python's syntax and types, sorted by name."""
    from pydoc_data.topics import topics

    return [text[:characters] for _, text in sorted(topics.items())]


def training_prompts() -> list[str]:
    """Return prompts of each kind in turn: a question, then each form of one subject."""
    pairs = zip(QUESTIONS, SUBJECTS, strict=True)
    return [text for q, subject in pairs for text in (q, *(f.format(subject) for f in FORMS))]


def own_chats(dense: Path, url: str, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """Return a chat per prompt as the model's template renders it, with its own greedy answer.

    An answer that was cut off does not end, so that none is learnt to end in mid-sentence.
    """
    tokenizer = AutoTokenizer.from_pretrained(dense)
    chats = []
    for prompt, answer in zip(prompts, ask(url, prompts, max_tokens), strict=True):
        turns = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        chats.append(f"{start}{answer.text}{tokenizer.eos_token if answer.is_whole else ''}")
    return chats


def _write(writer: FolderWriter, name: str, texts: Sequence[str]) -> None:
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    writer.path(name).write_text("".join(lines), encoding="utf-8")
