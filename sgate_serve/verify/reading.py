"""Is the base read as transformers reads it? Our reader makes the reference, so it needs a proof.

The dense reference (the base without gates, its config and tensors read by this package) must equal
the model that transformers' auto class builds from the same folder by itself, both in fp32.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from converters.masked import MaskedCheckpoint
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.verify.comparison import OutputComparison
from sgate_serve.verify.prompts import Prompt

NUM_PROMPTS = 2


@dataclass(frozen=True)
class Reading:
    """The result; `not_compared` says why there was nothing to compare with."""

    difference: str | None = None
    not_compared: str | None = None

    @property
    def is_alike(self) -> bool | None:
        return None if self.not_compared is not None else self.difference is None


@dataclass(frozen=True)
class _Description:
    """The parts of a model that are kept of it: settings, digests of its tensors, outputs."""

    settings: Mapping[str, Any]
    digests: Mapping[str, str]
    outputs: Sequence[Floats]

    @classmethod
    def of(cls, model: TorchModel, prompts: Sequence[Prompt]) -> "_Description":
        """Describe a model and free its memory."""
        with closing(model):
            outputs = [model.logits(prompt.tokens, prompt.types) for prompt in prompts]
            return cls(model.settings(), model.tensor_digests(), outputs)


def compare_reading(base: Checkpoint, prompts: Sequence[Prompt]) -> Reading:
    """Build the base twice, one after the other, and compare settings, tensors and outputs.

    A layout that transformers does not know has no second reader, and is not compared.
    """
    if base.layout is not None:
        why = f"how the base is read, since transformers cannot load it: {base.layout}"
        return Reading(not_compared=why)
    prompts = prompts[:NUM_PROMPTS]
    ours = _Description.of(TorchModel.masked_dense(MaskedCheckpoint(base)), prompts)
    try:
        loaded = TorchModel.by_transformers(base)
    except Exception as error:  # transformers has no common class of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Reading(
            f"transformers itself cannot load {base.folder} ({reason:.200}), so nothing shows that "
            "it is read correctly; repair the base"
        )
    theirs = _Description.of(loaded, prompts)
    different = _different_outputs(ours, theirs)
    # The reference of a base with index vectors has whole matrices, which transformers' has not.
    if not base.spec.lowered:
        different = _different_part(ours, theirs) or different
    if different is None:
        return Reading()
    return Reading(
        f"{base.folder} is read otherwise than transformers reads it: {different}; do not use "
        "conversions of it, and report its config.json"
    )


def _different_part(ours: _Description, theirs: _Description) -> str | None:
    """Return the first setting or tensor that differs."""
    for name in sorted(ours.settings.keys() | theirs.settings.keys()):
        found, expected = ours.settings.get(name), theirs.settings.get(name)
        if found != expected:
            return f"{name} of the config is {found!r:.80} here, and {expected!r:.80} there"
    for name in sorted(ours.digests.keys() | theirs.digests.keys()):
        if ours.digests.get(name) != theirs.digests.get(name):
            return f"tensor {name} is another one"
    return None


def _different_outputs(ours: _Description, theirs: _Description) -> str | None:
    compared = OutputComparison()
    for expected, found in zip(theirs.outputs, ours.outputs, strict=True):
        if expected.shape != found.shape:
            return f"outputs have shape {found.shape} here, and {expected.shape} there"
        compared.add(expected, found)
    result = compared.result()
    return None if result.holds else f"outputs differ by {result.max_abs_diff:.2e}"
