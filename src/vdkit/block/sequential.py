"""Targets that are written once, in ascending order: a streamOptimized VMDK, a pipe.

The work is cut in two so that the copy engine can do the heavy half on all its workers: ``encode`` may run on
any thread at any time and keeps nothing; ``append`` is called by one thread at a time, in ascending order.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

Encoded = TypeVar("Encoded")


class SequentialWriter(Protocol[Encoded]):
    """See the module. ``Encoded`` is whatever the writer makes of a piece."""

    @property
    def name(self) -> str: ...

    @property
    def capacity(self) -> int:
        """Size in bytes of the disk being written."""

    @property
    def unit(self) -> int:
        """Pieces start at multiples of this many bytes and are multiples of it long (the tail excepted)."""

    def encode(self, offset: int, data: memoryview) -> Encoded:
        """Compress one piece. ``data`` belongs to the caller again when this returns."""

    def append(self, encoded: Encoded) -> None:
        """Write a piece; every piece lies after all earlier ones."""

    def finish(self) -> None:
        """Complete the output; without it, the output must not be usable as a disk."""

    def abort(self) -> None:
        """Give up; release what is held. After ``finish`` it does nothing."""
