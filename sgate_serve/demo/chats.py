"""Chats that a model answered itself, as text in the form of its template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sgate_serve.progress import counted

BATCH_SIZE = 12


@torch.no_grad()
def answered_chats(folder: Path, prompts: Sequence[str], num_tokens: int) -> list[str]:
    """Return each prompt with the model's greedy answer of at most `num_tokens` tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    chats = []
    for start in counted(range(0, len(prompts), BATCH_SIZE), "batch"):
        messages = [
            [{"role": "user", "content": prompt}] for prompt in prompts[start : start + BATCH_SIZE]
        ]
        given = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        rows = model.generate(
            **given,
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        for row, mask in zip(rows, given["attention_mask"], strict=True):
            tokens = row[int((mask == 0).sum()) :].tolist()
            chats.append(_without_padding(tokenizer, tokens, int(mask.sum())))
    return chats


def _without_padding(tokenizer: Any, tokens: Sequence[int], prompt_length: int) -> str:
    """Decode a chat up to the first end token of its answer."""
    answer = list(tokens[prompt_length:])
    if tokenizer.eos_token_id in answer:
        answer = answer[: answer.index(tokenizer.eos_token_id) + 1]
    text: str = tokenizer.decode([*tokens[:prompt_length], *answer])
    return text
