"""Full, incremental or a scan? A pure function that says why; nothing falls back silently.

Source of the rules: users' threads on change tracking (bareos#1791: fail rather than take a silent full;
proxcenter#662: say so before the hours are spent).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vdkit.backup.manifest import DiskRecord
from vdkit.block.chain import MAX_LINKS
from vdkit.errors import TrackingOff, TrackingReset, UsageError

#: The remedy where change tracking cannot tell the changes and nobody has said what to do then.
CHOICES = "choose a full backup (--level full) or what to do without tracking (--on-reset full or scan)"


class Level(Enum):
    """What the caller asks for. ``INC`` means: an incremental or an error."""

    AUTO = "auto"
    FULL = "full"
    INC = "inc"


class ResetPolicy(Enum):
    """What to do when change tracking cannot tell what changed since the previous point."""

    FAIL = "fail"
    FULL = "full"
    SCAN = "scan"


class Tracking(Enum):
    """What the host says about the change id that the previous point was saved with."""

    #: It knows the id, or has not been asked because there is none.
    USABLE = "usable"
    #: Change tracking is not on for this disk.
    OFF = "off"
    #: It does not know the id: tracking was switched off and on, the disk was replaced or reverted.
    RESET = "reset"


class Method(Enum):
    """How the disk gets into the point."""

    FULL = "full"
    #: Read what change tracking names.
    CHANGES = "changes"
    #: Read everything and store what differs from the previous point.
    SCAN = "scan"


@dataclass(frozen=True)
class Decision:
    method: Method
    reason: str


@dataclass(frozen=True)
class PreviousDisk:
    """The disk in the newest complete point: that point's id and how many links the disk has there."""

    point_id: str
    disk: DiskRecord
    links: int


def choose_level(
    level: Level,
    previous: PreviousDisk | None,
    *,
    capacity: int,
    tracking: Tracking,
    on_reset: ResetPolicy = ResetPolicy.FAIL,
    what: str = "the disk",
) -> Decision:
    """How to back up one disk. ``what`` names it in messages; ``capacity`` is its size now, in bytes.

    Raises UsageError if an incremental is asked for and there is no point to continue, TrackingOff or
    TrackingReset if tracking cannot tell the changes and ``on_reset`` is FAIL.
    """
    if level is Level.FULL:
        return Decision(Method.FULL, "a full backup was asked for")
    if previous is None:
        if level is Level.INC:
            raise UsageError(
                f"{what}: there is no complete restore point to continue",
                remedy="take a full backup first, or let the level be auto",
            )
        return Decision(Method.FULL, "there is no complete restore point of this disk yet")
    if previous.links >= MAX_LINKS:
        if level is Level.INC:
            raise UsageError(
                f"{what}: point {previous.point_id} is link {previous.links} of its chain, the last allowed",
                remedy="take a full backup, or let the level be auto",
            )
        return Decision(Method.FULL, f"the chain has {previous.links} links, the most that can be restored")
    return _with_previous(previous, capacity, tracking, on_reset, what)


def _with_previous(
    previous: PreviousDisk, capacity: int, tracking: Tracking, on_reset: ResetPolicy, what: str
) -> Decision:
    if capacity != previous.disk.capacity:
        before = previous.disk.capacity
        why = f"its capacity changed from {before} to {capacity} bytes since {previous.point_id}"
        if on_reset is ResetPolicy.FAIL:
            raise TrackingReset(f"{what}: {why}", remedy=CHOICES)
        # A delta has the size of its parent: even a scan has to store everything.
        return Decision(Method.FULL, why)
    if tracking is Tracking.OFF:
        why = "change tracking is off"
    elif tracking is Tracking.RESET:
        why = f"change tracking was reset since point {previous.point_id}"
    elif previous.disk.change_id is None:
        why = f"point {previous.point_id} was made without change tracking"
    else:
        return Decision(Method.CHANGES, f"what changed since point {previous.point_id}")
    match on_reset:
        case ResetPolicy.FAIL:
            if tracking is Tracking.OFF:
                raise TrackingOff(f"{what}: {why}", remedy=f"switch it on, or {CHOICES}")
            raise TrackingReset(f"{what}: {why}", remedy=CHOICES)
        case ResetPolicy.FULL:
            return Decision(Method.FULL, why)
        case ResetPolicy.SCAN:
            return Decision(Method.SCAN, f"{why}: compared with point {previous.point_id}")
