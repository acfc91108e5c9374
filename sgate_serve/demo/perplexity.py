"""Held-out perplexity of a model folder."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import sgate_serve.models  # noqa: F401  # registers model_type "sgate"
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import end_token, pack, read_documents, read_tokenizer
from sgate_serve.demo.sizes import DemoSizes
from sgate_serve.training.tasks.evaluate import perplexity


def held_out_perplexity(folder: Path, data: Path, sizes: DemoSizes) -> float:
    """Return exp of the mean loss over the first blocks of `data`, computed in fp32."""
    checkpoint = Checkpoint.open(folder)
    tokenizer = read_tokenizer(folder / "tokenizer.json", checkpoint.spec.vocab_size)
    end = end_token(checkpoint.config)
    blocks = pack(read_documents(data), tokenizer, end, sizes.seq_len)[: sizes.eval_blocks]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return perplexity(model, blocks)
