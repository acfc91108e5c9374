"""NVIDIA's Puzzle of gpt-oss: layers with their own number of experts and their own window.

The config has `model_type: gpt_oss_puzzle` and an entry of `block_configs` for each layer, with
`num_local_experts` and `sliding_window` (null: the layer sees all). Everything else, tensors too,
is as in gpt-oss. The format is read from how vLLM's and MLX's models of that type use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from sgate_serve.architecture.config_schema import check_config
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import CAUSAL_LM, FULL_ATTENTION, SLIDING_ATTENTION
from sgate_serve.checkpoint.ragged.claims import BLOCK_CONFIGS
from sgate_serve.checkpoint.ragged.mixtures import Tensors, stored_shapes, uneven_mixture
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import OBJECT, SIZE, check_fields

MODEL_TYPE, BASE_TYPE = "gpt_oss_puzzle", "gpt_oss"
EXPERTS, WINDOW = "num_local_experts", "sliding_window"
LAYER_TYPES, ROPE = "layer_types", "rope_scaling"
# A name that keeps transformers from reading the settings while it loads the tokenizer.
SET_ASIDE = "yarn_rope_scaling"


@dataclass(frozen=True)
class Puzzle:
    """Such a config: `stock` is that of gpt-oss, but for what differs by layer."""

    stock: Mapping[str, Any]
    experts: Sequence[int]
    windows: Sequence[int | None]

    @classmethod
    def of(cls, config: Mapping[str, Any], source: str) -> "Puzzle | None":
        """Read a config; None for one of another type.

        Raises CheckpointError for entries that are missing or malformed, or that set a layer apart
        in anything else.
        """
        if config.get("model_type") != MODEL_TYPE:
            return None
        entries = config.get(BLOCK_CONFIGS)
        if not isinstance(entries, list) or len(entries) != config.get("num_hidden_layers"):
            raise CheckpointError(
                f"{source}: {BLOCK_CONFIGS} must have an entry for each of num_hidden_layers "
                f"{brief(config.get('num_hidden_layers'))}, found {brief(entries)}"
            )
        for index, entry in enumerate(entries):
            _check_entry(entry, f"{source}: {BLOCK_CONFIGS}[{index}]")
        experts = [entry[EXPERTS] for entry in entries]
        windows = [entry[WINDOW] for entry in entries]
        return cls(_stock_config(config, experts, windows, source), experts, windows)

    def normalized(
        self, stock: Mapping[str, Any], tensors: Tensors, source: str
    ) -> tuple[Mapping[str, Any], str]:
        """Return our own config of the layers, from the stock one, and their layout in words.

        Raises CheckpointError if the files hold other numbers of experts.
        """
        family = FAMILIES[BASE_TYPE]
        check_config(stock, source, family)
        _, layers = stored_shapes(stock, family, tensors, source)
        for index, (layer, count) in enumerate(zip(layers, self.experts, strict=True)):
            if len(layer.experts) != count:
                raise CheckpointError(
                    f"{source}: {BLOCK_CONFIGS}[{index}] has {EXPERTS} {count}, and the files "
                    f"hold {len(layer.experts)}; correct one of them"
                )
        words = f"{MODEL_TYPE} checkpoint, experts and windows of each layer from {BLOCK_CONFIGS}"
        return uneven_mixture(stock, family, layers, self.windows), words


def _check_entry(entry: Any, where: str) -> None:
    """Raise CheckpointError unless an entry has a number of experts, a window, and no more."""
    check_fields({"entry": entry}, {"entry": OBJECT}, where, CheckpointError)
    for key in (EXPERTS, WINDOW):
        if key not in (entry or {}):
            raise CheckpointError(f"{where} lacks {key}; download or copy config.json again")
    check_fields(entry, {EXPERTS: SIZE, WINDOW: SIZE}, where, CheckpointError)
    if entry[EXPERTS] is None:
        raise CheckpointError(f"{where}: {EXPERTS} must be {SIZE.words}, found null")
    if others := sorted(entry.keys() - {EXPERTS, WINDOW}):
        raise CheckpointError(
            f"{where}.{others[0]} is {brief(entry[others[0]])}; this release reads blocks that "
            "differ in their experts and windows, nothing else"
        )


def _stock_config(
    config: Mapping[str, Any], experts: Sequence[int], windows: Sequence[int | None], source: str
) -> dict[str, Any]:
    types = [FULL_ATTENTION if window is None else SLIDING_ATTENTION for window in windows]
    if config.get(LAYER_TYPES) not in (None, types):
        raise CheckpointError(
            f"{source}: {LAYER_TYPES} and the windows of {BLOCK_CONFIGS} contradict each other; "
            "correct one of them"
        )
    left_out = {BLOCK_CONFIGS, SET_ASIDE, "auto_map"}
    stock = {key: value for key, value in config.items() if key not in left_out}
    if config.get(SET_ASIDE) is not None and not config.get(ROPE):
        stock[ROPE] = config[SET_ASIDE]
    stock |= {
        "model_type": BASE_TYPE,
        "architectures": [FAMILIES[BASE_TYPE].tasks[CAUSAL_LM].model_class],
        LAYER_TYPES: types,
        EXPERTS: max(experts),
    }
    widest = max((window for window in windows if window is not None), default=None)
    return stock if widest is None else stock | {WINDOW: widest}
