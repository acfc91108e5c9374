"""Why a tensor that the config implies is not in the files, and the way out.

transformers would fill a missing tensor with random numbers and warn; a conversion of such a model
would mean nothing, so it is refused with the cause that the other tensors suggest.
"""

from collections.abc import Collection

from sgate_serve.architecture.family import BASE, CAUSAL_LM, CLASSIFICATION
from sgate_serve.architecture.spec import ModelSpec

RANDOM = "transformers would fill it with random numbers"


def why_missing(name: str, spec: ModelSpec, stored: Collection[str]) -> str:
    """Return cause and remedy for one tensor of `spec` that is not in `stored`."""
    family = spec.family
    expected = spec.tensor_shapes().keys()
    if not any(other in expected for other in stored):
        example = f" (such as {min(stored)!r:.80})" if stored else ""
        return (
            f"none of the {len(expected)} tensors of a {spec.head.model_class} is there, only "
            f"others{example}; save the model itself, not a module that wraps it"
        )
    if name in spec.head.tensors and spec.task == CAUSAL_LM:
        return (
            f"{RANDOM}. If the model shares its embedding as head, write "
            '"tie_word_embeddings": true into config.json'
        )
    if name in spec.head.tensors and spec.task == CLASSIFICATION:
        base = family.tasks[BASE].model_class
        return (
            f"the files hold no trained classifier and {RANDOM}; train one (`sgate train --task "
            f'classification`), or write "architectures": ["{base}"] into config.json'
        )
    switch = _switch_of(name, spec)
    if switch is not None:
        return (
            f"config.json says {switch}, and {RANDOM}; if the model has no such biases, write "
            f'"{switch}": false'
        )
    return f"{RANDOM}; save or download the checkpoint again, complete"


def _switch_of(name: str, spec: ModelSpec) -> str | None:
    """Return the field of the config that says that a linear has this bias, if one does."""
    for role, switch in spec.family.biases.items():
        if isinstance(switch, str) and name.endswith(f".{spec.family.linears[role]}.bias"):
            return switch
    return None
