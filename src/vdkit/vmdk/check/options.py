"""What a repair may do, and what it did.

Source of facts: none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vdkit.block.extent import RangeSet
from vdkit.vmdk.check.report import CheckReport


class Duplicates(Enum):
    """What becomes of a grain that two places of the disk point to: nothing tells whose it is."""

    CLONE = "clone"
    """Each gets a copy: what the guest reads stays as it is."""
    KEEP_FIRST = "keep-first"
    """The lower place of the disk keeps it, the others are emptied."""


@dataclass(frozen=True, slots=True)
class Options:
    """See :func:`~vdkit.vmdk.check.repair.repair_disk`."""

    duplicates: Duplicates = Duplicates.CLONE
    accept_loss: bool = False
    rebuild_header: bool = False
    fix_cid: bool = False
    tidy: bool = False
    parent_name: str | None = None
    parent_cid: int | None = None
    create_type: str | None = None
    max_clone: int = 16 << 30


@dataclass(slots=True)
class Outcome:
    """Gathered while the changes are worked out. ``blocked`` says what was not done for want of consent."""

    done: list[str] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)
    cloned: int = 0

    def lose(self, start: int, length: int) -> None:
        self.lost.append((start, length))

    def say(self, text: str) -> None:
        if text not in self.done and len(self.done) < 1000:
            self.done.append(text)


@dataclass(frozen=True, slots=True)
class RepairReport:
    """``lost`` are bytes of the disk whose content is gone (they read as zeroes, or as the parent's);
    ``inferred`` says what was not read but concluded; ``blocked`` what would need the caller's consent.
    ``changed``: file to bytes changed in it. ``target`` and ``undo`` are names in the store.
    """

    name: str
    before: CheckReport
    after: CheckReport
    done: tuple[str, ...]
    inferred: tuple[str, ...]
    blocked: tuple[str, ...]
    lost: tuple[tuple[int, int], ...]
    changed: dict[str, int]
    target: str | None
    undo: str | None
    dry_run: bool

    @property
    def is_changed(self) -> bool:
        return bool(self.changed)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "done": list(self.done),
            "inferred": list(self.inferred),
            "blocked": list(self.blocked),
            "lost": [{"start": start, "length": length} for start, length in self.lost],
            "changed": dict(self.changed),
            "target": self.target,
            "undo": self.undo,
            "dry-run": self.dry_run,
        }


def joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(RangeSet(ranges))
