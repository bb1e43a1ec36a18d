"""What every part of a check needs: how files are opened, where findings go, progress, cancelling.

Source of facts: none of its own; the rules are in the modules beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vdkit.block.device import BlockDevice
from vdkit.block.workers import CancelToken
from vdkit.vmdk.check.report import CheckProgress, Finding, Progress, Reporter, Severity
from vdkit.vmdk.names import Place


class Files:
    """Opens the files of a disk; a repair looks at its own, changed view of them through this."""

    def open(self, place: Place) -> BlockDevice:
        return place.open()

    def exists(self, place: Place) -> bool:
        return place.store.exists(place.name)


@dataclass(slots=True)
class Context:
    """One check. ``deep`` opens every grain of a stream."""

    files: Files
    allow_paths: Sequence[str] = ()
    deep: bool = False
    progress: Progress | None = None
    cancel: CancelToken | None = None
    reporter: Reporter = field(default_factory=Reporter)

    def step(self, place: str, done: int, total: int) -> None:
        """Called between pieces of work."""
        if self.cancel is not None:
            self.cancel.check()
        if self.progress is not None:
            self.progress(CheckProgress(place, done, total))

    def error(
        self,
        code: str,
        kind: str,
        place: str,
        message: str,
        *,
        offset: int | None = None,
        expected: object = "",
        found: object = "",
        repair: str = "",
        start: int | None = None,
        length: int | None = None,
        severity: Severity = Severity.ERROR,
    ) -> None:
        self.reporter.add(
            Finding(
                code, kind, severity, place, offset, message, str(expected), str(found), repair, start, length
            )
        )

    def note(
        self,
        code: str,
        kind: str,
        place: str,
        message: str,
        *,
        offset: int | None = None,
        repair: str = "",
    ) -> None:
        self.error(code, kind, place, message, offset=offset, repair=repair, severity=Severity.NOTE)


def read(file: BlockDevice, offset: int, length: int) -> bytearray:
    """Up to ``length`` bytes: what the file has of them."""
    data = bytearray(max(0, min(length, file.capacity - offset)))
    if data:
        file.read_into(offset, data)
    return data
