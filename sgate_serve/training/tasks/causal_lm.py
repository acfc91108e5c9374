"""The causal-lm task: packed blocks of text, measured by loss and perplexity."""

from torch import nn
from transformers import AutoModelForCausalLM

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import (
    end_token,
    evenly_spaced,
    pack,
    read_documents,
    read_tokenizer,
    split_documents,
)
from sgate_serve.data.hub import HELD_OUT
from sgate_serve.data.metrics import Metrics
from sgate_serve.errors import TrainingError
from sgate_serve.models.loading import load_model, loaded_by
from sgate_serve.training.tasks.evaluate import causal_lm_metrics
from sgate_serve.training.tasks.frozen_model import frozen_model
from sgate_serve.training.tasks.training_data import Samples, TrainingData, block_samples
from sgate_serve.training.train_options import TrainOptions

SINGLE_DOCUMENT = "the data is a single document, so its last tenth is held out"


class CausalLMTask:
    """Text in blocks of --seq-len tokens; the base brings its own head."""

    def __init__(self, base: Checkpoint, options: TrainOptions) -> None:
        if base.spec.task != CAUSAL_LM:
            raise TrainingError(
                f"{base.folder} is a {base.spec.head.model_class}: give a causal LM, or use --task "
                "classification"
            )
        self.data = read_data(base, options)
        self.needs_head, self.num_labels = False, 0
        self.notes = self.data.notes

    def open_model(self, base: Checkpoint) -> nn.Module:
        return load_frozen(base)

    def metrics(self, model: nn.Module, samples: Samples) -> Metrics:
        return causal_lm_metrics(model, samples, self.data.pad_token)


def read_data(base: Checkpoint, options: TrainOptions) -> TrainingData:
    """Read, split and pack the text; raise TrainingError if there is too little."""
    tokenizer = read_tokenizer(base.folder / "tokenizer.json", base.spec.vocab_size)
    documents = read_documents(options.data, columns=options.columns)
    source, notes = options.held_out_source, tuple[str, ...]()
    if source is None:
        notes = (SINGLE_DOCUMENT,) if len(documents) == 1 else ()
        documents, held_out = split_documents(documents, options.seed)
    else:
        held_out = read_documents(source, HELD_OUT, options.columns)
    end = end_token(base.config)

    def measured(texts: list[str]) -> Samples:
        blocks = pack(texts, tokenizer, end, options.seq_len)
        return block_samples(evenly_spaced(blocks, options.eval_blocks))

    elsewhere = {
        name: measured(read_documents(path, HELD_OUT, options.columns))
        for name, path in options.elsewhere.items()
    }
    train = block_samples(pack(documents, tokenizer, end, options.seq_len))
    return TrainingData(train, measured(held_out), notes=notes, elsewhere=elsewhere)


def load_frozen(base: Checkpoint) -> nn.Module:
    """Load a frozen causal LM in fp32, on the GPU if there is one."""
    if base.whole is not None:
        return frozen_model(load_model(base).eval(), base)
    return frozen_model(loaded_by(AutoModelForCausalLM.from_pretrained, base), base)
