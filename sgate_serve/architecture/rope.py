"""Rotary position settings, resolved for each layer from every spelling that configs have.

Older configs spell them `rope_theta`, `rope_scaling` and `rope_local_base_freq`, newer ones
`rope_parameters`, which may hold settings for each type of layer. Precedence and defaults are those
of transformers' config classes (`modeling_rope_utils`), also where two spellings meet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import FULL_ATTENTION, SLIDING_ATTENTION, Family
from sgate_serve.errors import CheckpointError

LONGROPE, YARN, PROPORTIONAL, DEFAULT_TYPE = "longrope", "yarn", "proportional", "default"
PARTIAL, ORIGINAL_LENGTH = "partial_rotary_factor", "original_max_position_embeddings"
TRUNCATE = "truncate"
THETA, LOCAL_THETA, TYPE, OLD_TYPE = "rope_theta", "rope_local_base_freq", "rope_type", "type"
# These types compare positions with the length that the model was first trained on.
LENGTH_TYPES = ("llama3", YARN, LONGROPE)
# The values that each type cannot do without.
NEEDS: Mapping[str, tuple[str, ...]] = {
    DEFAULT_TYPE: (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    PROPORTIONAL: (),
    YARN: ("factor", ORIGINAL_LENGTH),
    "llama3": ("factor", ORIGINAL_LENGTH, "low_freq_factor", "high_freq_factor"),
    LONGROPE: ("short_factor", "long_factor", ORIGINAL_LENGTH),
}


# With these types a partial rotation changes nothing, or rotates the rest by nothing.
SHARES = (DEFAULT_TYPE, PROPORTIONAL)


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
    get: ConfigReader,
    family: Family,
    windows: Sequence[int | None],
    num_positions: int,
    head_dims: Sequence[int],
) -> Iterator[Rope | None]:
    """Yield the settings of each layer, whose heads are this wide; None for one not rotated.

    Raises CheckpointError for settings that transformers refuses or cannot compute with.
    """
    if not family.is_rotary:
        yield from (None for _ in windows)
        return
    types = [FULL_ATTENTION if window is None else SLIDING_ATTENTION for window in windows]
    ropes = {}
    for layer_type in dict.fromkeys(types):
        read = _of_layer_type if family.has_rope_by_type else _of_every_layer
        settings = _completed(read(get, layer_type), get, family, num_positions)
        _check_settings(settings, get, family, head_dims[types.index(layer_type)])
        # That type turns pairs of whole heads, some of them by no angle.
        is_partial = family.has_partial_rotation and settings[TYPE] != PROPORTIONAL
        share = settings.get(PARTIAL, 1.0) if is_partial else 1.0
        ropes[layer_type] = Rope(_with_factor(settings, num_positions), float(share))
    if family.has_unrotated_layers:
        _check_switches(get, len(types))
    for index, layer_type in enumerate(types):
        is_rotated = not family.has_unrotated_layers or rotates(get, index)
        is_rotated = is_rotated and index not in family.recurrent_layers
        yield ropes[layer_type] if is_rotated else None


def rotates(get: ConfigReader, index: int) -> bool:
    """Say whether a layer rotates, in a family where some layers do not."""
    switches = get("no_rope_layers")
    if switches is None:
        return (index + 1) % get.integer("no_rope_layer_interval") != 0
    return index < len(switches) and switches[index] == 1


def _check_switches(get: ConfigReader, num_layers: int) -> None:
    """Refuse switches of another number of layers, of which transformers would take the first."""
    switches = get("no_rope_layers")
    if switches is not None and len(switches) != num_layers:
        raise CheckpointError(
            f"{get.source}: no_rope_layers has {len(switches)} entries for {num_layers} layers; "
            "keep those of the kept layers"
        )


def _of_every_layer(get: ConfigReader, layer_type: str) -> dict[str, Any]:
    """Return the settings of a class whose layers rotate alike: one spelling, the old one first."""
    parameters = get("rope_parameters")
    # Some classes have settings of their own for configs that state none, null included.
    parameters = get("default_rope_parameters") if parameters is None else parameters
    stated = dict(get("rope_scaling") or parameters or {})
    nested = next((key for key in (FULL_ATTENTION, SLIDING_ATTENTION) if key in stated), None)
    if nested is not None:
        raise CheckpointError(
            f"{get.source}: rope_parameters has settings for {nested}; in transformers the layers "
            "of this family rotate alike: write the settings without the type of layer"
        )
    stated.setdefault(THETA, get(THETA))
    return stated


def _of_layer_type(get: ConfigReader, layer_type: str) -> dict[str, Any]:
    """Return the settings of one type of layer; the old spelling scales full attention alone."""
    parameters, defaults = get("rope_parameters"), get("rope_by_type")
    if defaults is not None:
        stated = (defaults if parameters is None else parameters).get(layer_type)
        if stated is None:
            raise CheckpointError(
                f"{get.source}: rope_parameters lacks settings for {layer_type}, and "
                "transformers has none for it then; add them"
            )
        return dict(stated)
    nested = {FULL_ATTENTION: {TYPE: DEFAULT_TYPE}} if parameters is None else parameters
    stated, scaling = dict(nested.get(layer_type) or {TYPE: DEFAULT_TYPE}), get("rope_scaling")
    if not all(place.get(TRUNCATE, True) for place in (nested, stated, scaling or {})):
        raise CheckpointError(
            f"{get.source}: rope_parameters: {TRUNCATE} false is not supported where types of "
            "layers rotate apart: transformers does not read it there; remove it"
        )
    if scaling is not None:
        if not nested.get(FULL_ATTENTION):
            raise CheckpointError(
                f"{get.source}: rope_scaling next to rope_parameters without {FULL_ATTENTION}; "
                "transformers refuses both: keep rope_parameters"
            )
        # A `type` in it does not count: the settings of the other spelling have a `rope_type`.
        stated |= scaling if layer_type == FULL_ATTENTION else {}
    stated.setdefault(THETA, get(THETA if layer_type == FULL_ATTENTION else LOCAL_THETA))
    return stated


def _completed(
    stated: Mapping[str, Any], get: ConfigReader, family: Family, num_positions: int
) -> dict[str, Any]:
    """Fill in the type, the partial rotation and the lengths, which some configs keep outside."""
    settings = dict(stated)
    settings.setdefault(TYPE, settings.get(OLD_TYPE, DEFAULT_TYPE))
    settings.pop(OLD_TYPE, None)
    if get(PARTIAL) is not None:
        settings.setdefault(PARTIAL, get(PARTIAL))
    if get("rope_by_type") is not None:
        return settings  # such a class reads no length outside, and has none by default
    # transformers moves the length before it renames the type, and refuses what lacks it then.
    has_length = settings[TYPE] in LENGTH_TYPES or ORIGINAL_LENGTH in settings
    settings[TYPE] = family.rope_types.get(settings[TYPE], settings[TYPE])
    if has_length and settings[TYPE] in LENGTH_TYPES:
        outside = None if family.has_rope_by_type else get(ORIGINAL_LENGTH)
        settings.setdefault(ORIGINAL_LENGTH, num_positions)
        if outside is not None:
            settings[ORIGINAL_LENGTH] = outside
    return settings


def _with_factor(settings: dict[str, Any], num_positions: int) -> dict[str, Any]:
    """Return settings of longrope with the factor that transformers derives from the lengths."""
    if settings[TYPE] != LONGROPE or settings.get("factor") is not None:
        return settings
    return {**settings, "factor": num_positions / settings[ORIGINAL_LENGTH]}


def _check_settings(
    settings: Mapping[str, Any], get: ConfigReader, family: Family, width: int
) -> None:
    """Refuse settings with which transformers cannot build the family's rotary embedding."""
    kind, where = settings[TYPE], f"{get.source}: rope_parameters"
    known = (*dict.fromkeys(family.rope_types.values()), DEFAULT_TYPE)
    if kind not in (known if family.rope_types else NEEDS):
        raise CheckpointError(
            f"{where}: rope_type {brief(kind)} is not one that transformers has for family "
            f"{family.name} ({', '.join(known if family.rope_types else NEEDS)})"
        )
    missing = [key for key in (THETA, *NEEDS[kind]) if settings.get(key) is None]
    missing += [PARTIAL] if settings.get(PARTIAL, 1.0) is None else []
    if missing:
        raise CheckpointError(
            f"{where}: rope_type {kind!r} needs {missing[0]}; without it transformers refuses the "
            "config: add it there"
        )
    share = settings.get(PARTIAL, 1.0)
    if share != 1 and not family.has_partial_rotation and kind not in SHARES:
        raise CheckpointError(
            f"{where}: {PARTIAL} {share} with rope_type {kind!r} is not supported: transformers' "
            f"class of family {family.name} rotates whole heads; remove it"
        )
    _check_numbers(settings, int(width * share), where)


def _check_numbers(settings: Mapping[str, Any], num_rotated: int, where: str) -> None:
    """Refuse numbers that the formula of the type cannot take."""
    kind, pairs = settings[TYPE], -(-num_rotated // 2)
    for key in ("short_factor", "long_factor") if kind == LONGROPE else ():
        if len(settings[key]) != pairs or num_rotated % 2:
            raise CheckpointError(
                f"{where}: {key} has {len(settings[key])} values for {pairs} rotary pairs; correct "
                "the config"
            )
    singular = (
        (kind == "dynamic" and num_rotated <= 2)
        or (kind == YARN and settings[THETA] == 1)
        or (kind == LONGROPE and settings[ORIGINAL_LENGTH] == 1)
    )
    if singular:
        raise CheckpointError(
            f"{where}: rope_type {kind!r} divides by zero with these settings; correct the config"
        )
