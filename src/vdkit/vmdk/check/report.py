"""What a check finds, as plain data that JSON can hold.

Source of facts for the exit status: the manual of ``qemu-img check``, which scripts know already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

from vdkit.block.extent import RangeSet
from vdkit.errors import NotSupported, UnsupportedVersion

#: Findings of one kind that are kept one by one; the others are only counted.
MAX_PER_KIND = 256


class Severity(Enum):
    NOTE = "note"
    """Worth knowing; every reader gets the right bytes."""
    LEAK = "leak"
    """Space of the file that nothing uses."""
    ERROR = "error"
    """Some reader gets wrong bytes, or none."""


class Verdict(Enum):
    CLEAN = "clean"
    LEAKS = "leaks"
    CORRUPT = "corrupt"


class CheckExit:
    """Exit status of a check, as ``qemu-img check`` has it."""

    CLEAN = 0
    FAILED = 1
    CORRUPT = 2
    LEAKS = 3
    UNSUPPORTED = 63


def check_exit_code(error: BaseException) -> int:
    """Exit status where a check could not be completed."""
    if isinstance(error, NotSupported | UnsupportedVersion):
        return CheckExit.UNSUPPORTED
    return CheckExit.FAILED


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` is the rule (H1 ... D1), ``kind`` what is wrong with it; ``offset`` is a byte of the file
    ``place``. ``start`` and ``length`` are the bytes of the disk that are affected, if it is known which.
    ``repair`` says what a repair would do; empty if there is nothing to do or nothing can be done.
    """

    code: str
    kind: str
    severity: Severity
    place: str
    offset: int | None
    message: str
    expected: str = ""
    found: str = ""
    repair: str = ""
    start: int | None = None
    length: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "severity": self.severity.value}


@dataclass(frozen=True, slots=True)
class FileReport:
    """One extent file: ``allocated`` of ``grains`` are stored in ``size`` bytes, ``leaked`` are unused."""

    place: str
    size: int
    grains: int = 0
    allocated: int = 0
    leaked: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """``counts`` holds the number of findings by kind, those too that are not listed one by one."""

    name: str
    create_type: str
    capacity: int
    findings: tuple[Finding, ...]
    counts: dict[str, int]
    errors: int
    leaks: int
    notes: int
    files: tuple[FileReport, ...]

    @property
    def verdict(self) -> Verdict:
        if self.errors:
            return Verdict.CORRUPT
        return Verdict.LEAKS if self.leaks else Verdict.CLEAN

    @property
    def exit_code(self) -> int:
        match self.verdict:
            case Verdict.CLEAN:
                return CheckExit.CLEAN
            case Verdict.LEAKS:
                return CheckExit.LEAKS
            case Verdict.CORRUPT:
                return CheckExit.CORRUPT

    @property
    def affected(self) -> RangeSet:
        """Bytes of the disk that listed errors touch."""
        return RangeSet(
            (f.start, f.length)
            for f in self.findings
            if f.severity is Severity.ERROR and f.start is not None and f.length is not None
        )

    def of_kind(self, kind: str) -> Iterator[Finding]:
        return (finding for finding in self.findings if finding.kind == kind)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "create-type": self.create_type,
            "capacity": self.capacity,
            "verdict": self.verdict.value,
            "errors": self.errors,
            "leaks": self.leaks,
            "notes": self.notes,
            "counts": dict(self.counts),
            "findings": [finding.as_json() for finding in self.findings],
            "files": [asdict(file) for file in self.files],
        }


class CheckProgress(NamedTuple):
    """``done`` of ``total`` bytes of the tables (of the stream) in ``place``."""

    place: str
    done: int
    total: int


Progress = Callable[[CheckProgress], None]


class Reporter:
    """Gathers findings; keeps a bounded number of each kind."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self.counts: dict[str, int] = {}
        self.files: list[FileReport] = []
        self._severities = dict.fromkeys(Severity, 0)

    def add(self, finding: Finding) -> None:
        seen = self.counts.get(finding.kind, 0)
        self.counts[finding.kind] = seen + 1
        self._severities[finding.severity] += 1
        if seen < MAX_PER_KIND:
            self._findings.append(finding)

    @property
    def errors(self) -> int:
        return self._severities[Severity.ERROR]

    def report(self, name: str, create_type: str, capacity: int) -> CheckReport:
        return CheckReport(
            name=name,
            create_type=create_type,
            capacity=capacity,
            findings=tuple(self._findings),
            counts=dict(self.counts),
            errors=self._severities[Severity.ERROR],
            leaks=self._severities[Severity.LEAK],
            notes=self._severities[Severity.NOTE],
            files=tuple(self.files),
        )
