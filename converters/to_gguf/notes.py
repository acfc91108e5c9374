"""What a GGUF file has otherwise than the model folder beside it, in words."""

from collections.abc import Iterator

from converters.to_gguf.metadata import context_length
from converters.to_gguf.storage import F16
from converters.to_gguf.tensors import FileModel


def notes(model: FileModel) -> Iterator[str]:
    """Yield the file's architecture and types, then what is otherwise than in the folder."""
    spec, storage = model.spec, model.storage
    types = " and ".join(dict.fromkeys((storage.matrices, storage.tables)))
    yield f"llama.cpp's architecture {model.architecture.name}, in {types}"
    longest = context_length(spec)
    if longest < spec.max_positions:
        yield (
            f"its context ends at {longest} of {spec.max_positions} tokens, as llama.cpp has no "
            "sliding windows for this architecture"
        )
    own = {layer.index: spec.layers[layer.index] for layer in model.layers}
    wider = sum(layer.shape.mlp_units > own[layer.index].mlp_units for layer in model.layers)
    if wider:
        yield f"{wider} MLPs are wider by units that are zero, which change nothing"
    if not own[model.layers[0].index].num_heads:
        yield "the first layer has a head that is zero, which changes nothing"
    if spec.lowered:
        yield f"{len(spec.lowered)} matrices have zeros for what index vectors leave out"
    halves = sum(tensor.kind == F16 for tensor in model.tensors())
    if halves and storage.matrices != F16:
        yield f"{halves} matrices are in F16, as whole blocks of {storage.block} do not fill a row"
