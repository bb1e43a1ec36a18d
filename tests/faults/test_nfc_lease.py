"""The memory of a host that requests take is given back exactly once, however they end."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfctools import QUICK, Office, open_nfc, served, target
from vdkit.errors import HostOutOfMemory, TransportError, VixError
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.transports.nfc import Timeouts

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(13).randbytes(2 * MIB)
SHORT = Timeouts(connect=5, request=1, read=0.3, write=0.3, close=0.2)


class CountingLease:
    """Grants up to ``memory`` bytes, its floor always; notes what is out."""

    def __init__(self, memory: int = 1 << 40, floor: int = 64 * KIB) -> None:
        self.floor, self.memory = floor, memory
        self.out = self.peak = self.takes = self.refusals = self.closed = 0
        self.largest = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            assert not self.closed and size > 0
            if self.out + size > self.memory and (self.out or size > self.floor):
                self.refusals += 1
                return False
            self.out += size
            self.takes += 1
            self.peak = max(self.peak, self.out)
            self.largest = max(self.largest, size)
            return True

    def give(self, size: int) -> None:
        with self._lock:
            assert not self.closed
            self.out -= size
            assert self.out >= 0

    def close(self) -> None:
        with self._lock:
            assert self.out == 0
            self.closed += 1


ENDINGS: dict[str, NfcFaults] = {
    "well": NfcFaults(),
    "refused": NfcFaults(read_error=(99, "odd"), write_error=(99, "odd")),
    "no memory": NfcFaults(no_memory_over=64 * KIB),
    "refused and answered": NfcFaults(read_error_ranges=((MIB, 512),), error_twin=True),
    "cut": NfcFaults(cut_after_messages=13),
    "silent": NfcFaults(silent_after_messages=13),
    "protocol": NfcFaults(wrong_sequence=True, write_reply_total=1),
    "stuck": NfcFaults(stuck_reads_every=3),
}


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("write", [False, True])
def test_every_ending_gives_all_back(mode: str, name: str, write: bool) -> None:
    lease = CountingLease(600 * KIB)
    with served(Office(CONTENT), faults=ENDINGS[name]) as server:
        disk = open_nfc(target(server), mode=mode, writable=True, lease=lease, timeouts=SHORT)
        data = bytearray(CONTENT)
        for _ in range(2):
            with suppress(TransportError):
                disk.write_from(0, data) if write else disk.read_into(0, data)
            assert lease.out == 0
        with suppress(TransportError):
            disk.close()
    assert lease.takes
    assert lease.peak <= 600 * KIB
    assert lease.closed == 1


@pytest.mark.parametrize(
    ("faults", "changed"),
    [
        (NfcFaults(open_error=(5, "Failed to allocate")), {}),
        (NfcFaults(proxy_refused=True), {}),
        (NfcFaults(), {"thumbprint": "00" * 20}),
        (NfcFaults(), {"port": 1}),
        (NfcFaults(), {"window": 0}),
        (NfcFaults(), {"compression": "lzma"}),
    ],
)
def test_an_opening_that_fails_ends_the_lease(faults: NfcFaults, changed: dict[str, Any]) -> None:
    lease = CountingLease()
    options = {key: changed.pop(key) for key in ("window", "compression") if key in changed}
    with served(faults=faults) as server, pytest.raises(VixError):
        open_nfc(target(server, **changed), lease=lease, timeouts=QUICK, **options)
    assert (lease.closed, lease.takes) == (1, 0)


@settings(max_examples=25, deadline=None)
@given(
    memory=st.integers(0, 1200 * KIB),
    floor=st.sampled_from([4 * KIB, 10_000, 64 * KIB, 256 * KIB]),
    request=st.sampled_from([4 * KIB, 64 * KIB, 256 * KIB, MIB]),
    write=st.booleans(),
    threads=st.integers(1, 3),
)
def test_any_grant_is_enough(memory: int, floor: int, request: int, write: bool, threads: int) -> None:
    """With nothing but the floor, too: requests are cut to it, and all threads get through."""
    lease = CountingLease(memory, floor)
    office = Office(bytes(len(CONTENT)) if write else CONTENT)
    size = len(CONTENT) // 4
    got = [bytearray(CONTENT[n * size :][:size]) if write else bytearray(size) for n in range(threads)]
    with (
        served(office) as server,
        open_nfc(
            target(server), mode="nbd", writable=True, request_size=request, lease=lease, timeouts=QUICK
        ) as disk,
    ):

        def work(number: int) -> None:
            act = disk.write_from if write else disk.read_into
            act(number * size, got[number])

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert lease.out == 0
        assert lease.peak <= max(memory, floor)
    seen = office.content()
    for number, part in enumerate(got):
        assert part == CONTENT[number * size :][:size]
        assert not write or seen[number * size :][:size] == part


def test_a_lease_that_grants_nothing_at_all_is_told() -> None:
    """That breaks its promise; it must not become a loop."""
    lease = CountingLease(0, 64 * KIB)
    lease.take = lambda size: False  # type: ignore[method-assign]
    pauses: list[float] = []
    with (
        served(Office(CONTENT)) as server,
        open_nfc(target(server), lease=lease, sleep=pauses.append, timeouts=QUICK) as disk,
    ):
        with pytest.raises(HostOutOfMemory, match="no memory of the host is left"):
            disk.read_into(0, bytearray(MIB))
        assert pauses
        assert not disk.failed
