"""Pretrains a small Llama from scratch, the dense model of `sgate demo` and of benchmarks."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, set_seed

from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.data.documents import Blocks, pack, read_tokenizer
from sgate_serve.errors import TrainingError
from sgate_serve.progress import activity
from sgate_serve.training.phases.trainer import Phase, run
from sgate_serve.training.precision import best_device
from sgate_serve.training.run_dir import (
    check_empty,
    check_same_run,
    run_dir_of,
    start_run_dir,
)
from sgate_serve.training.tasks.training_data import block_samples

TOKENIZER_FILE = "tokenizer.json"
WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class LlamaSizes:
    """The sizes of the model; its head is tied to the embeddings."""

    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    mlp_units: int = 768


@dataclass(frozen=True)
class PretrainOptions:
    """The options of one pretraining run.

    `tokenizer_files`, which must include `tokenizer.json`, are copied into the model folder.
    `end_token` is the text of the token that ends a document.
    """

    out: Path
    documents: Sequence[str]
    tokenizer_files: Sequence[Path]
    end_token: str
    sizes: LlamaSizes = field(default_factory=LlamaSizes)
    steps: int = 600
    batch_size: int = 4  # in a few minutes, many small steps learn more than few large ones
    seq_len: int = 256
    max_positions: int = 1024
    learning_rate: float = 3e-3
    save_steps: int = 100
    seed: int = 0
    bf16: bool = False

    def check(self) -> None:
        """Raise TrainingError if there are no steps, or no tokenizer."""
        if self.steps < 1:
            raise TrainingError(f"steps {self.steps}: give a whole number of at least 1")
        if TOKENIZER_FILE not in [file.name for file in self.tokenizer_files]:
            raise TrainingError(f"tokenizer_files hold no {TOKENIZER_FILE}; add the tokenizer")


def pretrain(options: PretrainOptions) -> None:
    """Train a model and write its folder atomically, resuming an interrupted run.

    Raises TrainingError for contradictory options, too little text, an `out` that is not empty, or
    an interrupted run that was started with other options.
    """
    options.check()
    check_empty(options.out)
    files = {file.name: file for file in options.tokenizer_files}
    tokenizer = read_tokenizer(files[TOKENIZER_FILE], vocab_size=2**31)
    end: int | None = tokenizer.token_to_id(options.end_token)
    if end is None:
        raise TrainingError(f"{files[TOKENIZER_FILE]} has no token {options.end_token!r}")
    with activity("tokenizing the text", is_brief=True):
        blocks = pack(options.documents, tokenizer, end, options.seq_len)
    set_seed(options.seed)
    model = LlamaForCausalLM(llama_config(options, tokenizer.get_vocab_size(), end))
    model.to(best_device())
    run_dir = run_dir_of(options.out)
    (check_same_run if run_dir.exists() else start_run_dir)(run_dir, _record(options, blocks))
    _train(model, blocks, options)
    with new_folder(options.out) as writer:
        model.save_pretrained(writer.staging)
        for name, file in files.items():
            shutil.copyfile(file, writer.path(name))
        writer.last = [SINGLE_FILE]
    shutil.rmtree(run_dir)


def _record(options: PretrainOptions, blocks: Blocks) -> dict[str, Any]:
    """Return the options that shape the result, as JSON, with a hash in place of the text."""
    values = asdict(replace(options, documents=(), tokenizer_files=()))
    digest = hashlib.sha256(blocks.tobytes()).hexdigest()
    return {**values, "out": str(options.out), "documents": digest, "tokenizer_files": []}


def llama_config(options: PretrainOptions, vocab_size: int, end_token: int) -> LlamaConfig:
    """Return the stock config of the model to train."""
    sizes = options.sizes
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        intermediate_size=sizes.mlp_units,
        max_position_embeddings=options.max_positions,
        tie_word_embeddings=True,
        bos_token_id=end_token,
        eos_token_id=end_token,
    )


def _train(model: LlamaForCausalLM, blocks: Blocks, options: PretrainOptions) -> None:
    phase = Phase(
        folder=run_dir_of(options.out),
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        schedule="cosine",
        warmup_steps=round(WARMUP_SHARE * options.steps),
        save_steps=options.save_steps,
        seed=options.seed,
        bf16=options.bf16,
    )
    trainer = Trainer(model=model, args=phase.arguments(), train_dataset=block_samples(blocks))
    run(trainer, "training from scratch")
