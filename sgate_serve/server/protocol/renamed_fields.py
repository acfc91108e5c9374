"""Errors of chats in the words of another API, whose requests are answered as chats."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sgate_serve.errors import RequestError


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Raise errors of the block with the names of another API; `names` maps a chat's to these."""
    try:
        yield
    except RequestError as error:
        raise _renamed(error, names) from error


def _renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    param = error.param or ""
    for old, new in names.items():
        if param == old or param.startswith(f"{old}."):
            own = new + param[len(old) :]
            # Of a whole path, and of the fields that some messages add to one.
            message = str(error).replace(f"`{param}", f"`{own}")
            return RequestError(message, param=own, status=error.status, code=error.code)
    return error
