"""Rotary position settings, resolved for each layer from every spelling that configs have.

Older configs spell them `rope_theta`, `rope_scaling` and `rope_local_base_freq`, newer ones
`rope_parameters`, which may hold settings for each type of layer. Precedence and defaults are those
of transformers' config classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import FULL_ATTENTION, SLIDING_ATTENTION, Family

LONGROPE = "longrope"
DEFAULT_THETA = 10_000.0
LOCAL_THETA = "rope_local_base_freq"
PARTIAL, ORIGINAL_LENGTH = "partial_rotary_factor", "original_max_position_embeddings"
# These types compare positions with the length that the model was first trained on.
LENGTH_TYPES = ("llama3", "yarn", LONGROPE)


@dataclass(frozen=True)
class Rope:
    """How one layer rotates queries and keys.

    `settings` are transformers' `rope_parameters` of that layer, completed: `rope_type`,
    `rope_theta` and the values that the type needs. The first `rotated_share` of each head rotates.
    """

    settings: Mapping[str, Any]
    rotated_share: float = 1.0

    @property
    def rope_type(self) -> str:
        return str(self.settings["rope_type"])


def layer_ropes(
    get: ConfigReader, family: Family, windows: Sequence[int | None], num_positions: int
) -> Iterator[Rope | None]:
    """Yield the settings of each layer; None in a family with a table of positions.

    A `partial_rotary_factor` counts only where transformers' class of the family reads it.
    """
    if not family.is_rotary:
        yield from (None for _ in windows)
        return
    ropes = {}
    for layer_type in (FULL_ATTENTION, SLIDING_ATTENTION):
        settings = _completed(_stated(get, family, layer_type), get, num_positions)
        share = settings.get(PARTIAL, 1.0) if family.has_partial_rotation else 1.0
        ropes[layer_type] = Rope(settings, float(share))
    for window in windows:
        yield ropes[FULL_ATTENTION if window is None else SLIDING_ATTENTION]


def _stated(get: ConfigReader, family: Family, layer_type: str) -> dict[str, Any]:
    """Return what a config says of one type of layer, its base frequency included."""
    parameters, scaling = get("rope_parameters") or {}, get("rope_scaling") or {}
    theta = get("rope_theta", DEFAULT_THETA)
    if LOCAL_THETA in family.defaults:
        # Each type of layer has its own settings; the old spelling scales full attention alone.
        stated = dict(parameters.get(layer_type) or {})
        if layer_type == FULL_ATTENTION:
            stated |= scaling
        else:
            theta = get(LOCAL_THETA)
    else:
        stated = dict(scaling or parameters)
        if FULL_ATTENTION in stated or SLIDING_ATTENTION in stated:
            stated = dict(stated.get(layer_type) or {})
    settings = {key: value for key, value in stated.items() if value is not None}
    return {"rope_theta": theta, **settings}


def _completed(stated: Mapping[str, Any], get: ConfigReader, num_positions: int) -> dict[str, Any]:
    """Fill in the type, the partial rotation and the lengths, which some configs keep outside."""
    settings = dict(stated)
    settings.setdefault("rope_type", settings.pop("type", "default"))
    if get(PARTIAL) is not None:
        settings.setdefault(PARTIAL, get(PARTIAL))
    if settings["rope_type"] in LENGTH_TYPES:
        original = get(ORIGINAL_LENGTH) or settings.get(ORIGINAL_LENGTH) or num_positions
        settings[ORIGINAL_LENGTH] = original
        if settings["rope_type"] == LONGROPE:
            settings.setdefault("factor", num_positions / original)
    return settings
