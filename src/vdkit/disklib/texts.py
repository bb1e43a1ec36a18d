"""What VixDiskLib's error numbers mean, for callers who have only the number.

Source of facts: the published VixError list; the few texts that users quote are VixDiskLib's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vdkit.errors import VixError

_OK: Final = "The operation was successful"
#: Texts that people search for.
_QUOTED: Final = {
    1: "Unknown error",
    6: "The operation is not supported",
    13: "You do not have access rights to this file",
    14009: "The server refused connection",
    16053: "One or more required subsystems failed to initialize",
    16064: "The host is not licensed for this feature",
    25000: "The request has been queued",
    26000: "Synchronous and asynchronous requests are mixed on one handle",
}


def get_error_text(code: int) -> str:
    """A line for a VixError; only the low 16 bits of the number say which."""
    number = code & 0xFFFF
    if code == 0:
        return _OK
    quoted = _QUOTED.get(number)
    if quoted is not None:
        return quoted
    for kind in _classes(VixError):
        if kind.code.number == number:
            words = kind.code.name.replace("_", " ").casefold()
            return f"{words[0].upper()}{words[1:]} (VIX_E_{kind.code.name})"
    return f"Error {number}"


def _classes(kind: type[VixError]) -> Iterator[type[VixError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _classes(child)
