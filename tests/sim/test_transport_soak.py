"""A few seconds of the soak (``scripts/bench soak``), the host in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory
from vdkit.testing.soak import SECTOR, Content, Count, Soak, count_of, growth, slope
from vdkit.vsphere.session import Session

MIB = 1 << 20


class HostHere:
    """See :class:`vdkit.testing.soak.Host`."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host

    def login(self) -> Session:
        trust = Trust(sha256=self._host.thumbprint_sha256)
        return Session.login(
            self._host.host,
            self._host.port,
            self._host.user,
            self._host.password,
            trust,
            sleep=lambda seconds: None,
        )

    def set_faults(self, faults: NfcFaults) -> None:
        self._host.set_data_faults(faults)

    def expire(self) -> None:
        self._host.expire_sessions()

    def count(self) -> Count | None:
        return None


@pytest.fixture
def host(simulated_host_factory: HostFactory) -> Iterator[SimulatedHost]:
    host = simulated_host_factory(machines=0)
    for name in ("one", "two"):
        host.inventory.create_machine(name, "datastore1", [DiskSpec(capacity=6 * MIB)])
    yield host


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_wrong_and_nothing_left(host: SimulatedHost, tmp_path: Path, seed: int) -> None:
    soak = Soak(HostHere(host), ["one", "two"], seed=seed, folder=tmp_path)
    report = soak.run(60, round_seconds=1.0, rounds=3)
    assert report.problems == []
    assert report.rounds == len(report.ours) == 3
    assert report.opened > 6 and report.read > MIB and report.written > MIB
    assert sum(report.errors.values()) > 0, "no fault came through: nothing was tried"
    assert host.internal_errors == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.binary(min_size=1, max_size=1)), max_size=20))
def test_the_model_allows_what_a_failed_write_may_leave(writes: list[tuple[bool, int, bytes]]) -> None:
    content = Content(8 * SECTOR)
    possible = [{bytes(SECTOR)} for _ in range(8)]
    for good, sector, byte in writes:
        data = byte * SECTOR
        if good:
            content.written(sector * SECTOR, data)
            possible[sector] = {data}
        else:
            content.attempted(sector * SECTOR, data)
            possible[sector].add(data)
    for sector, values in enumerate(possible):
        assert content.wrong(sector * SECTOR, b"\xee" * 3 + bytes(SECTOR - 3)) == sector * SECTOR
        seen = max(values)
        assert content.wrong(sector * SECTOR, seen) is None
        # Once read it is known.
        for other in values - {seen}:
            assert content.wrong(sector * SECTOR, other) == sector * SECTOR


def test_growth_is_seen() -> None:
    same = [Count(9, 20, 100 * MIB)] * 8
    assert growth(same) == []
    # What breathes is not growth, and the warm-up is not looked at.
    assert growth([Count(1, 1, MIB)] * 2 + [Count(9, 20, (100 + n % 2 * 40) * MIB) for n in range(8)]) == []
    assert growth([*same, Count(10, 20, 100 * MIB)]) == ["9 threads became 10"]
    assert growth([*same, Count(9, 21, 100 * MIB)]) == ["20 descriptors became 21"]
    rising = [Count(9, 20, (100 + 10 * n) * MIB) for n in range(8)]
    assert growth(rising) == ["memory grew by 50.0 MiB in 6 rounds"]
    assert count_of(os.getpid()).threads >= 1
    assert slope([1.0, 3.0, 5.0]) == 2.0
