"""Embeddings and heads: their rows, whether they are tied, and the parts that predict further."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from sgate_serve.checkpoint.identity import fingerprint_of
from sgate_serve.checkpoint.outline.config import VOCAB_SIZE, AnyConfig
from sgate_serve.checkpoint.outline.faults import Fault
from sgate_serve.checkpoint.outline.layers import OTHER_STACKS
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, TensorInfo

EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight"),
    "backbone.embeddings.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight")
# Of layers that predict further tokens: a head, and what joins a token's two states.
FURTHER_HEADS = ("shared_head.head.weight",)
JOINTS = ("eh_proj.weight", "mtp.fc.weight")
TIED = "tie_word_embeddings"


def table_faults(config: AnyConfig, tensors: Mapping[str, TensorInfo]) -> Iterator[Fault]:
    """Yield tables whose rows are not the vocabulary, and a tie that the files contradict."""
    tensors = {name: info for name, info in tensors.items() if len(info.shape) == 2}
    own = {name: info for name, info in tensors.items() if not OTHER_STACKS.search(name)}
    embedding = _last(own, EMBEDDINGS)
    if embedding is None:
        return
    rows, hidden = embedding.shape[0], embedding.shape[-1]
    said = config.number(VOCAB_SIZE)
    if said is not None and said[1] != rows:
        yield Fault(embedding.name, f"it has {rows} rows, but {CONFIG_FILE} says {said[1]} tokens")
    head = _last(own, HEADS)
    if head is not None and head.shape[0] != rows:
        yield Fault(head.name, f"it has {head.shape[0]} rows, but {embedding.name} has {rows}")
    if head is None and config.values.get(TIED) is False and config.is_language_model:
        yield Fault(CONFIG_FILE, f"{TIED} is false, but no tensor is named {' or '.join(HEADS)}")
    if head is not None and config.values.get(TIED) is True and not _alike(head, embedding):
        yield Fault(
            CONFIG_FILE,
            f"{TIED} is true, but {head.name} is another table than {embedding.name}: "
            "transformers uses it, vLLM does not; set the field to false, or drop the tensor",
        )
    for name, info in tensors.items():
        if name.endswith(FURTHER_HEADS) and info.shape[0] != rows:
            yield Fault(name, f"it has {info.shape[0]} rows for {rows} tokens")
        if name.endswith(JOINTS) and info.dtype != "U8" and info.shape != (hidden, 2 * hidden):
            yield Fault(name, f"it is {list(info.shape)}, not {[hidden, 2 * hidden]}")


def _last(tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]) -> TensorInfo | None:
    """Return the tensor with the shortest name that ends so: parts of others have longer ones."""
    found = [info for name, info in tensors.items() if name.endswith(endings)]
    return min(found, key=lambda info: len(info.name), default=None)


def _alike(one: TensorInfo, other: TensorInfo) -> bool:
    """Say whether two tensors agree in their headers and in their first and last bytes."""
    first, second = (fingerprint_of({"": replace(info, name="")}) for info in (one, other))
    return first == second
