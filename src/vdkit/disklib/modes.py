"""Transport modes: which can open a remote disk, and which of a list is taken.

Source of the names and their order: the published VDDK programming guide.
"""

from __future__ import annotations

from typing import Final

from vdkit.errors import NotSupported, UsageError
from vdkit.transports.nfc import Mode

#: Modes that can be asked for, in the order of VixDiskLib; those of a remote disk that are built are opened.
KNOWN_MODES: Final = ("file", "san", "hotadd", "nbdssl", "nbd")
REMOTE_MODES: Final[tuple[Mode, ...]] = ("nbdssl", "nbd")
DEFAULT_MODES: Final = "nbdssl:nbd"


def list_transport_modes() -> str:
    """VixDiskLib's list: the modes that can be used here, best first."""
    return ":".join(("file", *REMOTE_MODES))


def choose_mode(modes: str) -> Mode:
    """The first mode of a colon list that can open a remote disk. Raises UsageError, NotSupported."""
    asked = [mode for mode in modes.split(":") if mode]
    for mode in asked:
        if mode not in KNOWN_MODES:
            raise UsageError(f"transport mode {mode!r}: {', '.join(KNOWN_MODES)} are known")
    for mode in asked:
        for built in REMOTE_MODES:
            if mode == built:
                return built
    raise NotSupported(f"transport modes {modes!r}: none of them can open a remote disk", remedy="use nbdssl")
