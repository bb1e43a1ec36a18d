"""Whatever leases do, in whatever order: a host's memory is never exceeded, and every floor is there."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from vdkit.errors import HostOutOfMemory, TooManyConnections
from vdkit.net.budget import HostBudgets, HostLease
from vdkit.net.limits import UNIT, HostLimits

KIB = 1 << 10
LIMITS = HostLimits(memory=3 << 20, connections=5)
SIZES = st.one_of(
    st.integers(0, LIMITS.memory), st.sampled_from([4 * KIB, 64 * KIB, UNIT, LIMITS.floor, 1 << 20])
)


class Sharing(RuleBasedStateMachine):
    """Leases of one host, some made by a process that was told of fewer connections."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 0.0
        folder = Path(self.folder.name)
        self.budgets = [
            HostBudgets(folder=folder, connections=connections).of("::1", 902, "vpxa", LIMITS)
            for connections in (LIMITS.connections, 2)
        ]
        self.open: dict[HostLease, list[int]] = {}
        self.all_alike = True

    def clock(self) -> float:
        return self.now

    @rule(target=held, fewer=st.integers(0, 9).map(lambda number: number == 0))
    def begin(self, fewer: bool) -> HostLease | None:
        self.all_alike = self.all_alike and not fewer
        budget = self.budgets[fewer]
        try:
            lease = budget.lease(wait=0, clock=self.clock)
        except (TooManyConnections, HostOutOfMemory):
            assert len(self.open) >= budget.limits.connections or not self.all_alike
            return None
        self.open[lease] = []
        return lease

    @rule(lease=held, size=SIZES)
    def take(self, lease: HostLease | None, size: int) -> None:
        if lease not in self.open or lease is None:
            return
        idle = not self.open[lease]
        granted = lease.take(size)
        if granted:
            self.open[lease].append(size)
        assert granted or not idle or size > lease.floor, "an idle connection can always send"

    @rule(lease=held, which=st.integers(0, 100))
    def give(self, lease: HostLease | None, which: int) -> None:
        if lease is not None and self.open.get(lease):
            requests = self.open[lease]
            lease.give(requests.pop(which % len(requests)))

    @rule(lease=consumes(held))
    def end(self, lease: HostLease | None) -> None:
        if lease in self.open and lease is not None:
            del self.open[lease]
            lease.close()

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.3]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.open) == 1)
    @rule()
    def a_lonely_one_gets_all(self) -> None:
        [(lease, requests)] = self.open.items()
        self.now += 1
        for _ in itertools.takewhile(lambda _: lease.take(UNIT), range(100)):
            requests.append(UNIT)
        assert lease.granted - lease.requested < UNIT
        if self.all_alike:
            assert lease.granted == LIMITS.memory - (LIMITS.connections - 1) * LIMITS.floor

    @invariant()
    def never_more_than_there_is(self) -> None:
        assert len(self.open) <= LIMITS.connections
        for lease, requests in self.open.items():
            assert sum(requests) == lease.requested <= lease.granted
        assert sum(lease.granted for lease in self.open) <= LIMITS.memory

    @invariant()
    def the_kernel_says_the_same(self) -> None:
        usage = self.budgets[0].usage()
        assert usage.connections == len(self.open)
        assert usage.memory == sum(lease.granted for lease in self.open)

    def teardown(self) -> None:
        for lease in self.open:
            lease.close()
        assert list(Path(self.folder.name).iterdir()) == [], "everything has been returned"
        self.folder.cleanup()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(stateful_step_count=40)
