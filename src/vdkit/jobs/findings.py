"""What a diagnosis finds: single findings, a verdict for each disk, and whether a backup may start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from vdkit.errors import ExitCode


class Severity(Enum):
    """How much a finding matters. A problem stands in the way of what was asked for."""

    GOOD = "good"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """``check`` is a stable name (``disk.independent``), ``subject`` what it is about.

    ``exit_code`` is what a backup would end with because of it; only problems have one.
    """

    check: str
    severity: Severity
    subject: str
    text: str
    remedy: str | None = None
    exit_code: int = ExitCode.OK


class DiskVerdict(Enum):
    """Whether the next backups of a disk can be incremental."""

    TRACKED = "tracked"
    #: The next backup of ours switches it on by itself.
    WILL_START = "will start"
    #: Not before somebody has done something.
    AFTER_REMEDY = "after a remedy"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ModeUse:
    """A transport mode: whether the disk can be opened with it, and why not or on what condition."""

    mode: str
    usable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DiskReport:
    """``in_backup`` is false for what no snapshot holds."""

    key: int
    label: str
    file: str
    verdict: DiskVerdict
    cause: str
    remedy: str | None
    in_backup: bool
    modes: tuple[ModeUse, ...]
    findings: tuple[Finding, ...]


class Go(Enum):
    """May a backup start?"""

    YES = "go"
    #: It works, but not for all disks, or never incrementally.
    LIMITED = "go, with limits"
    NO = "no go"


#: Codes of problems with which a backup still makes a point.
_LIMITS = (ExitCode.SOURCE_INCOMPLETE, ExitCode.CHANGE_TRACKING)
#: Whose code counts when there are several problems: the first of these that occurs.
_ORDER = (
    ExitCode.TRANSPORT,
    ExitCode.TRUST,
    ExitCode.LOGIN,
    ExitCode.CONTROL,
    ExitCode.USAGE,
    ExitCode.FAILED,
    *_LIMITS,
)


@dataclass(frozen=True, slots=True)
class Report:
    """All about one machine. ``findings`` are those of machine, account, server and hosts."""

    machine: str
    moref: str
    path: str
    disks: tuple[DiskReport, ...]
    findings: tuple[Finding, ...]

    def all(self, *severities: Severity) -> Iterator[Finding]:
        """Findings of these severities, those of the disks last."""
        everything = (*self.findings, *(finding for disk in self.disks for finding in disk.findings))
        return (finding for finding in everything if finding.severity in severities)

    @property
    def exit_code(self) -> int:
        """0, or the code that a backup would end with."""
        codes = {finding.exit_code for finding in self.all(Severity.PROBLEM)}
        if not codes:
            return ExitCode.OK
        return next((code for code in _ORDER if code in codes), ExitCode.FAILED)

    @property
    def go(self) -> Go:
        code = self.exit_code
        if code == ExitCode.OK:
            return Go.YES
        return Go.LIMITED if code in _LIMITS else Go.NO


def good(check: str, subject: str, text: str) -> Finding:
    return Finding(check, Severity.GOOD, subject, text)


def note(check: str, subject: str, text: str, remedy: str | None = None) -> Finding:
    return Finding(check, Severity.NOTE, subject, text, remedy)


def warning(check: str, subject: str, text: str, remedy: str | None = None) -> Finding:
    return Finding(check, Severity.WARNING, subject, text, remedy)


def problem(check: str, subject: str, text: str, remedy: str | None, exit_code: int) -> Finding:
    return Finding(check, Severity.PROBLEM, subject, text, remedy, exit_code)
