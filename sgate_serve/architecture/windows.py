"""The sliding window of each layer, from every spelling that configs have.

The derivation is that of transformers' config classes.
"""

from collections.abc import Iterator

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import FULL_ATTENTION, SLIDING_ATTENTION, Family
from sgate_serve.architecture.layer_types import stated_layer_types
from sgate_serve.architecture.rope import rotates
from sgate_serve.architecture.sgate_config import SgateBlock
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import SIZE, check_fields


def layer_windows(get: ConfigReader, family: Family, num_layers: int) -> Iterator[int | None]:
    """Yield each layer's sliding window in tokens, None for full attention.

    Raises CheckpointError for a layer that slides without a window, for settings that transformers
    follows only in part, and where the block `sgate` gives a window to a layer that has none.
    """
    narrower = dict(SgateBlock.read(get.values).windows)
    for index, window in enumerate(_stated_windows(get, family, num_layers)):
        own = narrower.pop(index, window)
        if own != window and (own is None or window is None or own > window):
            raise CheckpointError(
                f"{get.source}: sgate.windows gives layer {index} {own} tokens, and the other "
                f"fields {window or 'no window'}; convert the base checkpoint again"
            )
        yield own
    if narrower:
        raise CheckpointError(
            f"{get.source}: sgate.windows names layer {min(narrower)} of {num_layers}; convert the "
            "base checkpoint again"
        )


def _stated_windows(get: ConfigReader, family: Family, num_layers: int) -> Iterator[int | None]:
    """Yield each layer's window by the fields of its family."""
    if family.recurrence is not None:
        yield from [None] * num_layers
        return
    types = stated_layer_types(get, num_layers, (FULL_ATTENTION, SLIDING_ATTENTION))
    window = _window(get)
    if family.windows in ("never", "always"):
        _check_unread(get, family, types)
        yield from [window if get("use_sliding_window", True) else None] * num_layers
        return
    if family.windows in ("switched", "alternating") and not get("use_sliding_window"):
        window = None
    for index in range(num_layers):
        is_sliding = (
            _slides(get, family, index, window)
            if types is None
            else types[index] == SLIDING_ATTENTION
        )
        is_sliding &= not (family.windows == "full_last" and index == num_layers - 1)
        if is_sliding and window is None:
            raise CheckpointError(
                f"{get.source}: layer {index} has sliding attention, and there is no "
                "sliding_window; give one, or change layer_types"
            )
        yield window if is_sliding else None


def _window(get: ConfigReader) -> int | None:
    """Return how far back a token of a sliding layer sees; in an encoder, how far to each side."""
    stated, both_sides = get("sliding_window"), get("local_attention")
    return both_sides // 2 if stated is None and both_sides is not None else stated or None


def _slides(get: ConfigReader, family: Family, index: int, window: int | None) -> bool:
    """Say whether a layer slides by the pattern of its class."""
    if family.has_unrotated_layers:
        return window is not None and not rotates(get, index)
    if family.windows == "switched":
        return window is not None and index >= get.integer("max_window_layers")
    if family.windows == "alternating":
        # Also without a window, which the caller refuses.
        is_early = index % 2 == 0 and index < get.integer("max_window_layers")
        return bool(get("use_sliding_window")) and is_early
    # The layers without a window are those that end a round, or those that begin it.
    place = index if family.windows == "spaced" else index + 1
    return place % get.integer("sliding_window_pattern") != 0


def _check_unread(get: ConfigReader, family: Family, types: list[str] | None) -> None:
    """Refuse types of layers that a class without them leaves to its cache, or to another class."""
    values, source = get.values, get.source
    if values.get("model_type") == "mistral" and "layer_types" in values:
        raise CheckpointError(
            f"{source}: transformers reads model_type mistral with layer_types as ministral, which "
            "is not supported; remove layer_types if every layer has the sliding_window"
        )
    if types is not None and SLIDING_ATTENTION in types:
        raise CheckpointError(
            f"{source}: layer_types has layers of {SLIDING_ATTENTION}, and the layers of family "
            f"{family.name} are all alike in transformers; remove layer_types"
        )
    window = get.values.get("sliding_window")
    # The attention of such a family has no window, but the cache of transformers takes it.
    if not family.is_encoder:
        check_fields({"sliding_window": window}, {"sliding_window": SIZE}, source, CheckpointError)
