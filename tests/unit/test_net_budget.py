"""What a host bears, shared by leases: limits, waiting, fairness, and files that others left or spoiled."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdkit.block.filelock import try_lock, unlock
from vdkit.block.workers import CancelToken
from vdkit.errors import (
    Cancelled,
    HostOutOfMemory,
    OutsideStore,
    TooManyConnections,
    UsageError,
    VixError,
)
from vdkit.net import slots
from vdkit.net.budget import PAUSE, TELL_SECONDS, HostBudget, HostBudgets, HostLease
from vdkit.net.limits import MAX_FLOOR, UNIT, HostLimits, limits_of, server_of

MIB = 1 << 20
PORT = 902
SMALL = HostLimits(memory=4 * MIB, connections=4)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(tmp_path: Path) -> HostBudget:
    return HostBudgets(folder=tmp_path).of("127.0.0.1", PORT, "hostd", SMALL)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, no_leaks: None) -> Iterator[None]:
    yield
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(("vdkit-", ".vdkit-"))]
    assert left == [], "the last one takes the file away"


def leases(budget: HostBudget, count: int, clock: Clock) -> list[HostLease]:
    return [budget.lease(wait=0, clock=clock) for _ in range(count)]


# -- limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "server", "mib", "connections", "floor"),
    [
        ("3.5.0", "hostd", 32, 9, MIB),
        ("3.5.0", "vpxa", 32, 27, 512 << 10),
        ("4.1", "hostd", 32, 11, MIB),
        ("4.1", "vpxa", 32, 23, 768 << 10),
        ("5.5.0", "vpxa", 32, 52, 256 << 10),
        ("6.0.0", "hostd", 32, 50, 256 << 10),
        ("6.5", "hostd", 48, 50, 512 << 10),
        ("6.7.0", "vpxa", 48, 52, 512 << 10),
        ("7.0.0", "vpxa", 48, 52, 512 << 10),
        ("7.0.3.0", "vpxa", 48, 50, 512 << 10),
        ("8.0.3.0", "hostd", 96, 50, MIB),
        ("8.0.3.0", "vpxa", 48, 50, 512 << 10),
        ("9.1", "hostd", 96, 50, MIB),
        ("what?", "hostd", 32, 9, MIB),
        ("", "vpxa", 32, 27, 512 << 10),
    ],
)
def test_limits_of_versions(version: str, server: str, mib: int, connections: int, floor: int) -> None:
    limits = limits_of(version, server)  # type: ignore[arg-type]
    assert (limits.memory, limits.connections, limits.floor) == (mib * MIB, connections, floor)
    assert limits.floor <= MAX_FLOOR
    assert limits.floor * limits.connections < limits.memory, "something is left to share"


def test_a_ticket_names_the_server() -> None:
    assert [server_of(s) for s in ("nfc", "nfcssl", "vpxa-nfc", "vpxa-nfcssl")] == [
        "hostd",
        "hostd",
        "vpxa",
        "vpxa",
    ]


def test_limits_can_be_replaced() -> None:
    known = limits_of("7.0.3", "vpxa")
    assert known.replaced(memory=None, connections=None) == known
    assert known.replaced(memory=128 * MIB, connections=None) == HostLimits(128 * MIB, 50)
    assert known.replaced(memory=MIB, connections=None) == HostLimits(MIB, 4), "as many as fit"
    assert known.replaced(memory=None, connections=100) == HostLimits(48 * MIB, 100)


@pytest.mark.parametrize(("memory", "connections"), [(0, 1), (1 << 40, 1), (MIB, 0), (MIB, 5), (MIB, 10**9)])
def test_impossible_limits_are_refused(memory: int, connections: int) -> None:
    with pytest.raises(UsageError):
        HostLimits(memory, connections)
    with pytest.raises(UsageError):
        limits_of("8.0", "hostd").replaced(memory=memory, connections=connections)


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": 1},
        {"connections": 0},
        {"memory": MIB, "connections": 5},
        {"wait": -1.0},
        {"memory": 1 << 50},
    ],
)
def test_budgets_that_fit_no_host_are_refused_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        HostBudgets(**wrong)  # type: ignore[arg-type]


def test_a_name_and_its_address_are_one_host(tmp_path: Path) -> None:
    make = HostBudgets(folder=tmp_path).of
    literal = make("127.0.0.1", PORT, "hostd", SMALL)
    assert make("localhost", PORT, "hostd", SMALL).path == literal.path
    six = make("::1", PORT, "hostd", SMALL)
    assert make("[::1]", PORT, "hostd", SMALL).path == six.path
    unknown = make("nowhere.invalid", PORT, "hostd", SMALL)
    others = [
        six,
        unknown,
        make("127.0.0.1", PORT, "vpxa", SMALL),
        make("127.0.0.1", PORT + 1, "hostd", SMALL),
        make("../../etc/passwd\0", PORT, "hostd", SMALL),
        make("x" * 300, PORT, "hostd", SMALL),
    ]
    assert len({literal.path, *(other.path for other in others)}) == len(others) + 1
    assert {other.path.parent for other in others} == {tmp_path}
    assert all(len(other.path.name) < 200 for other in others)


# -- one lease --------------------------------------------------------------------------------------


def test_a_lease_grants_up_to_the_memory(budget: HostBudget, clock: Clock) -> None:
    [lease] = leases(budget, 1, clock)
    assert lease.floor == 512 << 10
    common = SMALL.memory - SMALL.connections * lease.floor
    granted = 0
    while lease.take(UNIT):
        granted += UNIT
    assert granted == lease.requested == lease.granted == lease.floor + common
    assert budget.usage().memory == granted
    lease.give(granted)
    assert (lease.requested, lease.granted) == (0, lease.floor)
    assert budget.usage().memory == lease.floor, "what is not used is not kept"
    assert not lease.take(SMALL.memory), "more than there is"
    lease.close()
    lease.close()
    assert not lease.take(1)
    assert budget.usage() == slots.Usage(0, 0, ())


def test_wrong_sizes_are_refused(budget: HostBudget, clock: Clock) -> None:
    [lease] = leases(budget, 1, clock)
    assert lease.take(10)
    for wrong in (-1, 11):
        with pytest.raises(UsageError):
            lease.give(wrong)
    with pytest.raises(UsageError):
        lease.take(-1)
    lease.give(10)
    lease.close()


def test_the_floor_is_there_whatever_others_took(budget: HostBudget, clock: Clock) -> None:
    first, *others = leases(budget, SMALL.connections, clock)
    while first.take(UNIT):
        pass
    for other in others:
        assert other.take(other.floor)
    assert budget.usage().memory == SMALL.memory
    for lease in (first, *others):
        lease.close()


def test_large_windows_shrink_when_another_wants_its_share(budget: HostBudget, clock: Clock) -> None:
    rich, poor = leases(budget, 2, clock)
    while rich.take(UNIT):
        pass
    poor.take(poor.floor)
    for _ in range(200):  # both have a request answered and ask for all that they can get, again and again
        for lease in (rich, poor):
            clock.now += 0.1
            lease.give(UNIT)
            while lease.take(UNIT):
                pass
    common = SMALL.memory - SMALL.connections * rich.floor
    assert rich.requested + poor.requested == common + 2 * rich.floor, "nothing is left unused"
    assert rich.requested == poor.requested, "they share equally"
    # One that has become idle leaves everything to the other.
    poor.give(poor.requested)
    clock.now += 1
    while rich.take(UNIT):
        pass
    assert rich.requested == common + rich.floor
    rich.close()
    poor.close()


# -- waiting ----------------------------------------------------------------------------------------


def test_waiting_is_told_and_ends_in_an_error(
    budget: HostBudget, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    held = leases(budget, SMALL.connections, clock)
    heard: list[str] = []
    with caplog.at_level("INFO", logger="vdkit"), pytest.raises(TooManyConnections) as caught:
        budget.lease(wait=75, notify=heard.append, sleep=clock.sleep, jitter=lambda: 0.5, clock=clock)
    assert sum(clock.slept) == pytest.approx(75)
    assert max(clock.slept) <= PAUSE
    assert len(heard) == 1 + 75 // TELL_SECONDS
    for text in (*heard, str(caught.value)):
        assert "127.0.0.1:902" in text
        assert "4 of 4 connections" in text
        assert "2.0 of 4 MiB" in text
        assert f"by 1 process (pid {os.getpid()})" in text
    assert heard == [record.getMessage() for record in caplog.records]
    assert "host_connections" in str(caught.value) and "75 s" in str(caught.value)
    assert (caught.value.code.number, caught.value.retryable) == (1002, True)
    for lease in held:
        lease.close()


def test_waiting_ends_when_another_does(budget: HostBudget, clock: Clock) -> None:
    held = leases(budget, SMALL.connections, clock)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > 1:
            held[2].close()

    late = budget.lease(wait=60, sleep=sleep, clock=clock)
    assert 1 < late.waited < 2
    assert held[0].waited == 0
    for lease in (*held, late):
        lease.close()


def test_a_leaving_holder_is_not_told_of(budget: HostBudget, clock: Clock) -> None:
    """Who takes the file away has all of it for a moment, and then nobody has."""
    budget.path.touch()
    heard: list[str] = []
    with budget.path.open("r+b") as leaving:
        real = slots.Slots.usage

        def usage(self: slots.Slots) -> slots.Usage:
            unlock(leaving.fileno(), 0, 0)
            return real(self)

        assert try_lock(leaving.fileno(), 0, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slots.Slots, "usage", usage)
            lease = budget.lease(notify=heard.append, sleep=clock.sleep, clock=clock)
    assert heard == [] and len(clock.slept) == 1
    lease.close()


def test_a_leaving_holder_refuses_nobody(budget: HostBudget, clock: Clock) -> None:
    """Nor who has no time to wait: there is room in a moment."""
    budget.path.touch()
    with budget.path.open("r+b") as leaving:
        assert try_lock(leaving.fileno(), 0, 0)

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            unlock(leaving.fileno(), 0, 0)

        budget.lease(wait=0, sleep=sleep, clock=clock).close()
    assert len(clock.slept) == 1


def test_waiting_can_be_cancelled(budget: HostBudget, clock: Clock) -> None:
    held = leases(budget, SMALL.connections, clock)
    cancel = CancelToken()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        cancel.cancel()

    with pytest.raises(Cancelled):
        budget.lease(cancel=cancel, sleep=sleep)
    assert len(clock.slept) == 1
    for lease in held:
        lease.close()


def test_processes_with_other_limits_stay_below_the_larger_ones(tmp_path: Path, clock: Clock) -> None:
    """One was told of few connections, another of many: the units of the first lie where floors should."""
    few = HostBudgets(folder=tmp_path, connections=1).of("::1", PORT, "hostd", SMALL)
    many = HostBudgets(folder=tmp_path).of("::1", PORT, "hostd", SMALL)
    hog = few.lease(wait=0, clock=clock)
    while hog.take(UNIT):
        pass
    assert hog.requested == SMALL.memory
    with pytest.raises(HostOutOfMemory) as caught:
        many.lease(wait=1, sleep=clock.sleep, clock=clock)
    assert "4.0 of 4 MiB" in str(caught.value) and "host_memory" in str(caught.value)
    assert caught.value.code.number == 2
    hog.give(hog.requested)
    late = many.lease(wait=0, clock=clock)
    while late.take(UNIT) or hog.take(UNIT):
        clock.now += 1
    assert late.requested + hog.requested == SMALL.memory
    hog.close()
    late.close()


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\xff" * 4096, b"not a number", bytes(1 << 16)])
def test_what_a_file_contains_is_not_believed(budget: HostBudget, clock: Clock, content: bytes) -> None:
    budget.path.write_bytes(content)
    assert budget.usage() == slots.Usage(0, 0, ())
    held = leases(budget, SMALL.connections, clock)
    assert budget.usage() == slots.Usage(4, SMALL.connections * held[0].floor, (os.getpid(),))
    with pytest.raises(TooManyConnections):
        budget.lease(wait=0)
    for lease in held:
        lease.close()


def test_the_mode_is_for_everybody_whatever_the_umask(budget: HostBudget, clock: Clock) -> None:
    before = os.umask(0o077)
    try:
        [lease] = leases(budget, 1, clock)
    finally:
        os.umask(before)
    status = budget.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o666
    lease.close()


def test_symbolic_links_are_not_followed(budget: HostBudget, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    budget.path.symlink_to(victim)
    with pytest.raises(OutsideStore) as caught:
        budget.lease(wait=0)
    assert str(budget.path) in str(caught.value)
    assert victim.read_bytes() == b"precious"
    budget.path.unlink()


def test_a_second_name_of_a_file_is_not_written_to(budget: HostBudget, tmp_path: Path, clock: Clock) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    budget.path.hardlink_to(victim)
    [lease] = leases(budget, 1, clock)
    assert victim.read_bytes() == b"precious"
    lease.close()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_a_regular_file_is_used(budget: HostBudget, kind: str) -> None:
    if kind == "folder":
        budget.path.mkdir()
    else:
        os.mkfifo(budget.path)
    with pytest.raises(VixError) as caught:
        budget.lease(wait=0)
    assert str(budget.path) in str(caught.value)
    budget.path.rmdir() if kind == "folder" else budget.path.unlink()


def test_a_file_that_was_removed_is_not_shared_any_more(budget: HostBudget, clock: Clock) -> None:
    """Whoever cleans the folder takes the file from under a lease; newcomers meet in the new one."""
    [old] = leases(budget, 1, clock)
    budget.path.unlink()
    one, two = leases(budget, 2, clock)
    assert budget.usage().connections == 2
    old.close()
    assert budget.path.exists(), "the old one takes only its own file away"
    one.close()
    two.close()


def test_a_file_that_goes_between_opening_and_locking_is_left(budget: HostBudget, clock: Clock) -> None:
    stale = slots.Slots(budget.path, SMALL)
    [lease] = leases(budget, 1, clock)
    lease.close()
    assert not stale.enter(), "it would be alone in a file without a name"
    stale.close()


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    budget = HostBudgets(folder=tmp_path / "none").of("::1", PORT, "hostd", SMALL)
    with pytest.raises(VixError) as caught:
        budget.lease(wait=0)
    assert "none" in str(caught.value)


def test_without_a_common_folder_the_process_counts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    monkeypatch.setattr(slots, "_FOLDERS", (str(tmp_path), str(tmp_path / "none")))
    first = HostBudgets().of("::1", PORT, "hostd", SMALL)
    again = HostBudgets().of("::1", PORT, "hostd", SMALL)
    assert first.path == again.path and first.path.parent != tmp_path
    assert "not shared" in caplog.text
    held = leases(first, SMALL.connections, clock)
    with pytest.raises(TooManyConnections):
        again.lease(wait=0)
    for lease in held:
        lease.close()


def test_the_common_folder_is_the_same_for_every_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, common = tmp_path / "private", tmp_path / "common"
    private.mkdir()
    common.mkdir()
    common.chmod(0o1777)
    monkeypatch.setattr(slots, "_FOLDERS", (str(private), str(common)))
    assert slots.shared_folder() == common
    assert HostBudgets().of("::1", PORT, "hostd", SMALL).path.parent == common


def test_an_unusable_file_in_the_common_folder_costs_the_sharing_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(slots, "_FOLDERS", (str(tmp_path),))
    blocked = HostBudgets(folder=tmp_path).of("::1", PORT, "hostd", SMALL).path
    blocked.mkdir()
    budget = HostBudgets().of("::1", PORT, "hostd", SMALL)
    assert budget.path.parent != tmp_path
    leases(budget, 1, clock)[0].close()
    with pytest.raises(VixError) as caught:
        HostBudgets(folder=tmp_path).of("::1", PORT, "hostd", SMALL).lease(wait=0)
    assert str(blocked) in str(caught.value), "a folder that was asked for has to work"
    blocked.rmdir()


def test_locks_of_two_openings_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b") as one, path.open("r+b") as two:
        assert try_lock(one.fileno(), 5, 2)
        assert not try_lock(two.fileno(), 6, 1)
        assert try_lock(two.fileno(), 7, 1)
