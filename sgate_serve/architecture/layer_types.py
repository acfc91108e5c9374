"""What `layer_types` of a config says of each layer."""

from collections.abc import Sequence
from reprlib import repr as brief

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import TEXTS, check_fields


def stated_layer_types(
    get: ConfigReader, num_layers: int, known: Sequence[str]
) -> list[str] | None:
    """Return the type of each layer, one of `known`; None if the config does not say.

    Raises CheckpointError for types of another number of layers, and for others.
    """
    stated = get.values.get("layer_types")
    check_fields({"layer_types": stated}, {"layer_types": TEXTS}, get.source, CheckpointError)
    if stated is None:
        return None
    if len(stated) != num_layers:
        raise CheckpointError(
            f"{get.source}: layer_types names {len(stated)} layers of {num_layers}"
        )
    if strange := [name for name in stated if name not in known]:
        raise CheckpointError(
            f"{get.source}: layer_types names {brief(strange[0])}; this release knows "
            f"{' and '.join(known)} here"
        )
    return list(stated)
