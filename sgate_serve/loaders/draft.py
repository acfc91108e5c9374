"""Load the model that drafts for a slot engine, with the sizes of that engine."""

import logging
from dataclasses import replace
from pathlib import Path

from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import DEFAULT_DRAFT_TOKENS, OnnxOptions, SlotOptions
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.errors import EngineError
from sgate_serve.json_fields import read_json
from sgate_serve.options import flag_of
from sgate_serve.text.tokenizer_files import TOKENIZER_FILE

logger = logging.getLogger(__name__)

DRAFT = flag_of("draft")


def open_draft(model: Checkpoint, options: SlotOptions) -> Checkpoint:
    """Open the draft model of the options; raise EngineError unless it can draft for `model`."""
    draft = Checkpoint.open(f"{options.draft}")
    if draft.spec.task != CAUSAL_LM:
        raise EngineError(f"{DRAFT} {draft.folder}: it does not generate text; give a causal LM")
    sizes = (draft.spec.vocab_size, model.spec.vocab_size)
    if sizes[0] != sizes[1]:
        raise EngineError(
            f"{DRAFT} {draft.folder}: its vocabulary has {sizes[0]} tokens, that of "
            f"{model.folder} {sizes[1]}; give a model that was pruned from it"
        )
    if not _have_same_file(draft.folder / TOKENIZER_FILE, model.folder / TOKENIZER_FILE):
        raise EngineError(
            f"{DRAFT} {draft.folder}: its {TOKENIZER_FILE} is not that of {model.folder}; give a "
            "model that was pruned from it"
        )
    if isinstance(options, OnnxOptions) and options.device != "cpu":
        raise EngineError(f"{DRAFT} needs --device cpu, found {options.device}; leave one out")
    return draft


def draft_options(draft: Checkpoint, engine: SlotEngine, options: SlotOptions) -> SlotOptions:
    """Return the options to load a draft model with: the sizes of the engine that it drafts for.

    Raises EngineError if it holds fewer tokens, or a step of the engine cannot check a draft.
    """
    count, chunk, length = num_drafted(options), engine.prefill_chunk, engine.max_model_len
    if count >= chunk:
        raise EngineError(
            f"a step of {chunk} tokens cannot check {count} drafted ones and the one before; raise "
            f"{flag_of('prefill_chunk')}, or lower {flag_of('draft_tokens')}"
        )
    if draft.spec.max_positions < length:
        raise EngineError(
            f"{DRAFT} {draft.folder}: it holds {draft.spec.max_positions} tokens, and the model "
            f"that it drafts for {length}; give {flag_of('max_model_len')}"
        )
    own = options.without_draft()
    if isinstance(own, OnnxOptions) and isinstance(options, OnnxOptions):
        own = replace(own, precision=options.draft_precision or options.precision)
    logger.info("draft %s: %d tokens at a time, on an engine of its own:", draft.folder, count)
    slots = engine.runner.num_slots
    return replace(own, slots=slots, max_model_len=length, prefill_chunk=chunk)


def check_can_draft(engine: SlotEngine, model: Checkpoint) -> None:
    """Raise EngineError unless the engine of one of the two models can forget single tokens."""
    if not engine.runner.shares_prefixes:
        raise EngineError(
            f"{DRAFT}: {model.folder} cannot take back a token that was drafted wrongly, as its "
            f"layers are recurrent or its device is cuda; leave {DRAFT} out"
        )


def num_drafted(options: SlotOptions) -> int:
    """Return how many tokens are drafted at a time."""
    return options.draft_tokens or DEFAULT_DRAFT_TOKENS


def _have_same_file(one: Path, other: Path) -> bool:
    """Say whether two JSON files say the same, or are both missing."""
    if not (one.is_file() and other.is_file()):
        return one.is_file() == other.is_file()
    return one.read_bytes() == other.read_bytes() or read_json(one) == read_json(other)
