"""Where the data port of the simulated host meets its model: tickets, grants, refusals.

The data port (``sim/nfc_server.py``) knows nothing of machines and datastores; the model knows nothing of
NFC. This module is all that they share. The texts and codes of the refusals are those that real hosts were
seen to send (our NFC specification, section 12.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vdkit.block.device import BlockDevice

#: The code of a path that the ticket does not cover, and of a writable open with a read-only ticket.
CODE_DENIED = 11
#: The code of a host whose NFC memory is used up.
CODE_NO_MEMORY = 5
#: No code is on record for a locked or running disk: hosts were seen to send only the text. Ours.
CODE_DISK = 13


class Refusal(Exception):
    """The model refuses an open; the server sends it as an ERROR record with this code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def denied(path: str, *, writable: bool) -> Refusal:
    """The path is not covered by the ticket, or the ticket is read-only and a write was asked for."""
    access = 2 if writable else 1
    text = f"NfcAioProcessOpenFileMsg: permission check failed for file '{path}', access = {access}"
    return Refusal(CODE_DENIED, text)


def running(path: str) -> Refusal:
    """The disk is the link that a running machine writes to."""
    text = f"NfcAioOpenFile: '{path}': Thin/TBZ/Sparse disks cannot be opened in multiwriter mode"
    return Refusal(CODE_DISK, text)


def locked(path: str) -> Refusal:
    """Somebody else, for instance the datastore browser, holds the file."""
    return Refusal(CODE_DISK, f"NfcAioOpenFile: '{path}': DiskLib error 16392: Failed to lock the file")


def missing(path: str) -> Refusal:
    """There is no such file in the datastore."""
    return Refusal(
        CODE_DISK, f"NfcAioOpenFile: '{path}': DiskLib error 4: The system cannot find the file specified"
    )


class Grant(Protocol):
    """What a redeemed ticket allows."""

    def open(self, path: str, *, writable: bool) -> BlockDevice:
        """The disk at a datastore path such as ``[ds] vm/vm.vmdk``; the caller closes it.

        A writable open returns a :class:`~vdkit.block.device.WritableDevice`. Raises :class:`Refusal`.
        """


@runtime_checkable
class DiskDatabase(Protocol):
    """A :class:`Grant` that can also answer questions about a disk's descriptor. Optional."""

    def disk_database(self, path: str) -> Mapping[str, str]:
        """The ``ddb.`` entries of a disk, keys without that prefix. Raises :class:`Refusal`."""


class TicketOffice(Protocol):
    """Keeper of the tickets: single use, expiring, scoped. The office decides, the server only asks."""

    def redeem(self, ticket: str) -> Grant | None:
        """The grant of a ticket, which is thereby used up; None for an unknown, used or expired one."""
