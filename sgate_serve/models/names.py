"""The names of modules and tensors in transformers' models, where they are not those in files."""

from transformers import PreTrainedModel

from sgate_serve.architecture.family import Family


def name_in(model: PreTrainedModel, family: Family, name: str) -> str:
    """Return the name that a module or tensor has in `model`.

    A model without a head lacks the prefix of the stack, and some classes call the experts' block
    otherwise than files do.
    """
    renames = {} if family.mixture is None else family.mixture.renames
    name = ".".join(renames.get(part, part) for part in name.split("."))
    return name.removeprefix(f"{family.prefix}.") if model.base_model is model else name
