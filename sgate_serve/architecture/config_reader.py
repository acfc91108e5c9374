"""Reads single fields of a config by our names, with the family's spelling and defaults."""

from collections.abc import Mapping
from typing import Any

from sgate_serve.architecture.family import Family
from sgate_serve.errors import CheckpointError


class ConfigReader:
    """Typed access to one JSON object in our names; errors name the file and its own key."""

    def __init__(self, values: Mapping[str, Any], source: str, family: Family | None = None):
        self.values, self.source = values, source
        self._keys = {} if family is None else family.keys
        self._defaults = {} if family is None else family.defaults

    def __call__(self, key: str, default: Any = None) -> Any:
        value = self.values.get(self._keys.get(key, key))
        return self._defaults.get(key, default) if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number; raise CheckpointError for any other value, or for none."""
        value = self(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            own = self._keys.get(key, key)
            raise CheckpointError(f"{self.source}: {own} must be a whole number, found {value!r}")
        return value
