"""Asynchronous requests: each completion once, only what had not begun cancelled, many at once over NFC."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfctools import QUICK, Office, open_nfc, served, target
from vdkit.block.device import BaseWritableDevice
from vdkit.block.forward import Forwarding
from vdkit.disklib.handle import DiskHandle
from vdkit.disklib.requests import LOCAL_WORKERS, REMOTE_WORKERS, Request, Requests
from vdkit.disklib.resuming import ResumingDisk
from vdkit.errors import Cancelled, Closed, HostError, StoreError, VixError
from vdkit.net.stream import Stream
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.transports.nfc import NfcDisk
from vdkit.transports.nfc.session import Session

pytestmark = pytest.mark.usefixtures("no_leaks")
SECTOR = 512
#: What an open disk is made of.
KINDS = (NfcDisk, ResumingDisk, DiskHandle, Session, Stream, Request, Requests)


class Gated(BaseWritableDevice):
    """Reads wait until the gate is open; what is at ``broken`` fails."""

    def __init__(self, broken: frozenset[int] = frozenset()) -> None:
        super().__init__(name="gated", capacity=1 << 20, writable=True)
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self._broken = broken

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.begun.release()
        assert self.gate.wait(30)
        if offset in self._broken:
            raise StoreError(f"gated: offset {offset} cannot be read")
        view[:] = b"r" * len(view)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._read_into(offset, memoryview(bytearray(len(view))))

    def _flush(self) -> None:
        pass


def test_what_has_not_begun_is_cancelled_and_nothing_else() -> None:
    device = Gated(frozenset({0, 20 * SECTOR}))
    told: list[tuple[int, VixError | None]] = []
    with DiskHandle(device, "file", "a", local=True) as disk:
        requests = [
            disk.read_async(n, 1, bytearray(SECTOR), lambda error, n=n: told.append((n, error)))  # type: ignore[misc]
            for n in range(30)
        ]
        for _ in range(LOCAL_WORKERS):
            device.begun.acquire()
        # Four are under way, of which one will fail; one is cancelled by itself, the rest together.
        assert not requests[0].cancel()
        assert requests[7].cancel() and requests[7].cancel()
        assert disk.cancel() == 30 - LOCAL_WORKERS - 1
        assert disk.cancel() == 0
        assert not any(request.done for request in requests)
        device.gate.set()
        disk.wait()
        assert all(request.done for request in requests)
        assert not requests[7].cancel() or requests[7].cancelled
        after = len(told)
        disk.wait()
        assert len(told) == after == 30
    results = dict(told)
    assert len(results) == 30
    assert type(results[0]) is StoreError
    assert [n for n, error in sorted(results.items()) if error is None] == [1, 2, 3]
    cancelled = [n for n, error in results.items() if isinstance(error, Cancelled)]
    assert len(cancelled) == 26
    assert {results[n].code.number for n in cancelled} == {10}  # type: ignore[union-attr]
    assert [request.cancelled for request in requests] == [n in cancelled for n in range(30)]


def test_a_cancelled_request_without_a_completion_is_no_error() -> None:
    device = Gated()
    with DiskHandle(device, "file", "a", local=True) as disk:
        for n in range(10):
            disk.write_async(n, bytes(SECTOR))
        for _ in range(LOCAL_WORKERS):
            device.begun.acquire()
        assert disk.cancel() == 10 - LOCAL_WORKERS
        device.gate.set()
        disk.wait()


def test_an_error_is_no_cancellation_when_the_handle_is_closed() -> None:
    device = Gated(frozenset({0}))
    device.gate.set()
    told: list[VixError | None] = []
    disk = DiskHandle(device, "file", "a", local=True)
    request = disk.read_async(0, 1, bytearray(SECTOR), told.append)
    disk.close()
    assert [type(error) for error in told] == [StoreError]
    assert request.done and not request.cancelled and not request.cancel()
    with pytest.raises(Closed):
        disk.read_async(0, 1, bytearray(SECTOR))


def test_a_completion_may_cancel_what_follows() -> None:
    results: list[VixError | None] = []
    with DiskHandle(Gated(), "file", "a", local=True) as disk:
        device = disk.inner
        assert isinstance(device, Gated)

        def first(error: VixError | None) -> None:
            results.append(error)
            disk.cancel()

        for n in range(LOCAL_WORKERS):
            disk.read_async(n, 1, bytearray(SECTOR), first)
        for _ in range(LOCAL_WORKERS):
            device.begun.acquire()
        rest = [disk.read_async(n, 1, bytearray(SECTOR), results.append) for n in range(20)]
        device.gate.set()
        disk.wait()
        assert len(results) == LOCAL_WORKERS + 20
        assert sum(isinstance(error, Cancelled) for error in results) == sum(r.cancelled for r in rest)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["ask", "cancel one", "cancel all", "wait"]), min_size=1, max_size=40))
def test_each_completion_once(steps: list[str]) -> None:
    told: Counter[int] = Counter()
    wrong: list[object] = []
    requests = Requests("r", 3)
    made = []
    ran: Counter[int] = Counter()

    def ask(number: int) -> None:
        def completion(error: VixError | None) -> None:
            told[number] += 1
            if isinstance(error, Cancelled) == bool(ran[number]):
                wrong.append(error)

        made.append(requests.submit(lambda: ran.update([number]), completion))

    for step in steps:
        match step:
            case "ask":
                ask(len(made))
            case "cancel one" if made:
                made[len(made) // 2].cancel()
            case "cancel all":
                requests.cancel()
            case "wait":
                requests.wait()
                assert all(told[n] == 1 for n in range(len(made)))
            case _:
                pass
    requests.close()
    assert all(told[n] == 1 for n in range(len(made)))
    assert not wrong
    assert {n for n, request in enumerate(made) if request.cancelled} == set(range(len(made))) - set(ran)


# -- over the network ----------------------------------------------------------------------------------


def test_requests_over_the_network_are_under_way_together() -> None:
    """While the host is busy with the first one, all the others are with it already."""
    content = bytes(range(256)) * 4096
    busy, gate = threading.Event(), threading.Event()

    class Slow(Forwarding):
        def _read_into(self, offset: int, view: memoryview) -> None:
            busy.set()
            assert gate.wait(30)
            super()._read_into(offset, view)

    office = Office(content)
    office.wrap = Slow
    opened: list[NfcDisk] = []

    def opener() -> NfcDisk:
        opened.append(open_nfc(target(server), mode="nbd", timeouts=QUICK))
        return opened[0]

    buffers = [bytearray(64 << 10) for _ in range(REMOTE_WORKERS)]
    told: list[VixError | None] = []
    with served(office) as server, DiskHandle(ResumingDisk(opener), "nbd", "a") as disk:
        for number, buffer in enumerate(buffers):
            disk.read_async(128 * number, 128, buffer, told.append)
        assert busy.wait(30)
        late = time.monotonic() + 30
        while len(opened[0]._session._operations) < REMOTE_WORKERS and time.monotonic() < late:
            time.sleep(0.001)
        assert len(opened[0]._session._operations) == REMOTE_WORKERS
        assert not told
        gate.set()
        disk.wait()
        assert told == [None] * REMOTE_WORKERS
    assert b"".join(buffers) == content[: len(buffers) * (64 << 10)]


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_what_the_host_says_reaches_the_completion_as_it_is(mode: str) -> None:
    """VDDK 6.0 reported an I/O error as a cancellation."""
    faults = NfcFaults(read_error_ranges=((8 * SECTOR, SECTOR),))
    with served(Office(bytes(1 << 20)), faults=faults) as server:
        inner = ResumingDisk(lambda: open_nfc(target(server), mode=mode, timeouts=QUICK))
        told: dict[int, VixError | None] = {}
        with DiskHandle(inner, mode, "a") as disk:
            for n in range(16):
                disk.read_async(n, 1, bytearray(SECTOR), lambda error, n=n: told.update({n: error}))  # type: ignore[misc]
            disk.wait()
            assert inner.reopened == 0
        assert [n for n, error in told.items() if error is not None] == [8]
        assert type(told[8]) is HostError


def alive() -> Counter[str]:
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, KINDS))


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_hundreds_of_openings_leave_nothing(mode: str) -> None:
    """Opened and closed by several threads at once, with requests under way; no_leaks looks afterwards."""
    data = bytes(range(256)) * 256
    failed: list[BaseException] = []
    kept = alive()
    with served(Office(data)) as server:
        aim = target(server)

        def opener() -> NfcDisk:
            return open_nfc(aim, mode=mode, timeouts=QUICK)

        def cycles(count: int) -> None:
            try:
                for _ in range(count):
                    with DiskHandle(ResumingDisk(opener), mode, "a") as disk:
                        buffer = bytearray(4096)
                        disk.read_async(8, 8, buffer)
                        disk.wait()
                        assert buffer == data[4096:8192]
            except BaseException as error:
                failed.append(error)
                raise

        cycles(5)
        before = threading.active_count()
        threads = [threading.Thread(target=cycles, args=(150 if mode == "nbd" else 60,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        # The last handler of the server may be about to end.
        assert threading.active_count() <= before + 4
    assert alive() <= kept
