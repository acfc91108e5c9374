"""The table of models of text and images (or sound) whose text part is a model of a family.

An entry says which family that is, and how files of such a whole name its tensors, in whatever age
they were written. `text_part` reads the config of the part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Whole:
    """A model type and its class in transformers, with the family of its text part."""

    model_type: str
    model_class: str
    family: str
    # Beginnings of the names that tensors of the text part have in files, and those that they have
    # in a model of text alone.
    names: Mapping[str, str]
    # Beginnings of the names of all else: images, sound, and what joins them to the text.
    others: tuple[str, ...]
    # Fields of the text that the class of the text alone follows and that of the whole ignores.
    ignored: tuple[str, ...] = ()
    # What its config class takes where `tie_word_embeddings` is left out.
    ties_head: bool = False
    # transformers' class of the text alone reads files with these names too, and ignores `others`.
    is_read_alone: bool = False

    def text_name(self, name: str) -> str:
        """Return the name in a model of text alone; names outside the text part stay."""
        for start, own in self.names.items():
            if name.startswith(start):
                return own + name.removeprefix(start)
        return name

    def has_text(self, name: str) -> bool:
        return name.startswith(tuple(self.names))

    def has_other(self, name: str) -> bool:
        return name.startswith(self.others)


NESTED = {"model.language_model.": "model."}


def _llava(
    model_type: str, model_class: str, family: str, *, ignored: tuple[str, ...] = ()
) -> Whole:
    """Return a whole whose class follows LLaVA's: older files have other names."""
    older = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."}
    parts = ("vision_tower.", "multi_modal_projector.")
    others = (*(f"model.{part}" for part in parts), *parts)
    names = {**NESTED, **older}
    return Whole(model_type, model_class, family, names, others, ignored, ties_head=True)


def _qwen(model_type: str, model_class: str, family: str) -> Whole:
    others = ("model.visual.",)
    return Whole(model_type, model_class, family, NESTED, others, is_read_alone=True)


_WHOLES = (
    _qwen("qwen3_5", "Qwen3_5ForConditionalGeneration", "qwen3_5_text"),
    _qwen("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"),
    _llava(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "gemma3_text",
        ignored=("final_logit_softcapping",),
    ),
    Whole(
        "gemma4",
        "Gemma4ForConditionalGeneration",
        "gemma4_text",
        names=NESTED,
        others=tuple(
            f"model.{part}."
            for part in ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
        ),
        ties_head=True,
    ),
    _llava("mistral3", "Mistral3ForConditionalGeneration", "mistral"),
)
WHOLES: Mapping[str, Whole] = {whole.model_type: whole for whole in _WHOLES}


def wholes_of(family: str) -> Iterator[Whole]:
    """Yield the wholes whose text part is a model of a family."""
    return (whole for whole in _WHOLES if whole.family == family)
