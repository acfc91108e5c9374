"""Reads single fields of a config by our names, with the family's spelling and class defaults."""

from collections.abc import Mapping
from typing import Any

from sgate_serve.architecture.family import Family
from sgate_serve.errors import CheckpointError


class ConfigReader:
    """Typed access to one JSON object in our names; errors name the file and its own key.

    With a family, a key that its config class does not read is not read here either.
    """

    def __init__(self, values: Mapping[str, Any], source: str, family: Family | None = None):
        self.values, self.source, self._family = values, source, family

    def __call__(self, key: str, default: Any = None) -> Any:
        """Return a field's value, else what its absence means, else `default`; null stays None."""
        family, own = self._family, self.own_key(key)
        if family is None:
            return self.values.get(own, default)
        if key in family.fixed or own not in family.fields:
            return family.fixed.get(key, default)
        for name in (own, *family.synonyms(own)):
            if name in self.values:
                return self.values[name]
        return family.fields[own].default

    def own_key(self, key: str) -> str:
        """Return the name that the config's family has for one of our keys."""
        return key if self._family is None else self._family.keys.get(key, key)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number; raise CheckpointError for any other value, or for none."""
        value = self(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            own = self.own_key(key)
            raise CheckpointError(f"{self.source}: {own} must be a whole number, found {value!r}")
        return value
