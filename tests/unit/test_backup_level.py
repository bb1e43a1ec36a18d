"""Which level a disk gets, and that nothing falls back silently."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vdkit.backup.level import Level, Method, PreviousDisk, ResetPolicy, Tracking, choose_level
from vdkit.backup.manifest import DiskRecord, FileRecord, Kind
from vdkit.block.chain import MAX_LINKS
from vdkit.errors import ExitCode, TrackingOff, TrackingReset, UsageError

CAPACITY = 1 << 30
RECORD = DiskRecord(
    key=2000,
    label="Hard disk 1",
    capacity=CAPACITY,
    kind=Kind.FULL,
    reason="first",
    cid=1,
    change_id="52 de/1",
    file=FileRecord("f", 1, "0" * 64),
    map=FileRecord("m", 1, "0" * 64),
    changed=0,
    read=0,
    zero=0,
    seconds=0.0,
)
PREVIOUS = PreviousDisk("20260101T000000Z-00000000", RECORD, 1)


def test_the_first_backup_is_full_and_says_why() -> None:
    decision = choose_level(Level.AUTO, None, capacity=CAPACITY, tracking=Tracking.USABLE)
    assert decision.method is Method.FULL
    assert "no complete restore point" in decision.reason


def test_an_incremental_without_a_point_is_an_error_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="take a full backup first"):
        choose_level(Level.INC, None, capacity=CAPACITY, tracking=Tracking.USABLE)


@pytest.mark.parametrize("level", [Level.AUTO, Level.INC])
def test_a_usable_change_id_gives_an_incremental(level: Level) -> None:
    decision = choose_level(level, PREVIOUS, capacity=CAPACITY, tracking=Tracking.USABLE)
    assert decision.method is Method.CHANGES
    assert PREVIOUS.point_id in decision.reason


def test_full_is_full_whatever_there_is() -> None:
    for tracking in Tracking:
        assert choose_level(Level.FULL, PREVIOUS, capacity=1, tracking=tracking).method is Method.FULL


@pytest.mark.parametrize("level", [Level.AUTO, Level.INC])
def test_bareos_1791_a_reset_fails_unless_told_otherwise(level: Level) -> None:
    with pytest.raises(TrackingReset, match="--on-reset full or scan") as caught:
        choose_level(level, PREVIOUS, capacity=CAPACITY, tracking=Tracking.RESET, what="disk 2000")
    assert caught.value.exit_code == ExitCode.CHANGE_TRACKING
    assert "disk 2000" in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "method"), [(ResetPolicy.FULL, Method.FULL), (ResetPolicy.SCAN, Method.SCAN)]
)
def test_a_reset_does_what_the_policy_says_and_tells(policy: ResetPolicy, method: Method) -> None:
    decision = choose_level(Level.AUTO, PREVIOUS, capacity=CAPACITY, tracking=Tracking.RESET, on_reset=policy)
    assert decision.method is method
    assert "reset" in decision.reason


def test_tracking_that_is_off_is_a_named_error() -> None:
    with pytest.raises(TrackingOff, match="switch it on"):
        choose_level(Level.AUTO, PREVIOUS, capacity=CAPACITY, tracking=Tracking.OFF)


def test_a_point_without_a_change_id_cannot_be_continued_by_tracking() -> None:
    untracked = replace(PREVIOUS, disk=replace(RECORD, change_id=None))
    with pytest.raises(TrackingReset, match="made without change tracking"):
        choose_level(Level.AUTO, untracked, capacity=CAPACITY, tracking=Tracking.USABLE)


def test_a_disk_that_grew_needs_a_new_base() -> None:
    with pytest.raises(TrackingReset, match="capacity changed"):
        choose_level(Level.AUTO, PREVIOUS, capacity=CAPACITY * 2, tracking=Tracking.USABLE)
    for policy in (ResetPolicy.FULL, ResetPolicy.SCAN):
        decision = choose_level(
            Level.AUTO, PREVIOUS, capacity=CAPACITY * 2, tracking=Tracking.USABLE, on_reset=policy
        )
        assert decision.method is Method.FULL
        assert "capacity changed" in decision.reason


def test_a_chain_never_grows_beyond_what_can_be_opened() -> None:
    longest = replace(PREVIOUS, links=MAX_LINKS)
    decision = choose_level(Level.AUTO, longest, capacity=CAPACITY, tracking=Tracking.USABLE)
    assert decision.method is Method.FULL
    assert str(MAX_LINKS) in decision.reason
    with pytest.raises(UsageError, match="take a full backup"):
        choose_level(Level.INC, longest, capacity=CAPACITY, tracking=Tracking.USABLE)
