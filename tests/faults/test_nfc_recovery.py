"""What a host refuses costs the call, not the disk; one short of memory is asked for less; nothing leaks."""

from __future__ import annotations

import random
import threading
from collections import deque
from contextlib import suppress

import pytest

from nfctools import QUICK, Office, open_nfc, opened, served, target
from vdkit.block.copy import copy
from vdkit.block.device import BlockDevice
from vdkit.block.forward import Forwarding
from vdkit.block.memory import MemoryDevice
from vdkit.disklib.handle import DiskHandle
from vdkit.disklib.resuming import ResumingDisk
from vdkit.errors import (
    DeadlineExceeded,
    HostError,
    HostFileLocked,
    HostOutOfMemory,
    TransportError,
    UsageError,
)
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.testing.relay import Relay
from vdkit.transports.nfc import CompressionName, Mode, NfcDisk, Timeouts
from vdkit.transports.nfc.pace import ALL_ATTEMPTS, ATTEMPTS, FLOOR

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(11).randbytes(4 * MIB)
MODES: tuple[Mode, ...] = ("nbd", "nbdssl")
NO_MEMORY = (5, "Failed to allocate the requested 65560 bytes")


class Counted(Forwarding):
    """The host's side of a disk: which bytes were asked of it."""

    def __init__(self, inner: BlockDevice, asked: list[tuple[int, int]]) -> None:
        super().__init__(inner)
        self._asked = asked

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._asked.append((offset, len(view)))
        super()._read_into(offset, view)


def read(disk: BlockDevice, offset: int = 0, length: int = len(CONTENT)) -> bytes:
    data = bytearray(length)
    disk.read_into(offset, data)
    return bytes(data)


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("compression", ["none", "skipz"])
def test_a_refused_read_fails_alone(mode: Mode, twin: bool, compression: CompressionName) -> None:
    faults = NfcFaults(read_error_ranges=((MIB, 512),), error_twin=twin)
    with (
        served(Office(CONTENT), faults=faults) as server,
        open_nfc(target(server), mode=mode, compression=compression, timeouts=QUICK) as disk,
    ):
        for _ in range(3):
            with pytest.raises(HostError, match=f"Input/output error.* at offset {MIB}") as caught:
                read(disk)
            assert caught.value.code.number == 1
            assert type(caught.value) is HostError
            assert read(disk, 0, MIB) == CONTENT[:MIB]
            assert read(disk, MIB + 512, MIB) == CONTENT[MIB + 512 :][:MIB]
        assert not disk.failed
        assert server.connections == 1


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        ((99, "DiskLib error 16392: Failed to lock the file"), HostFileLocked, 15),
        (NO_MEMORY, HostOutOfMemory, 2),
    ],
)
def test_kinds_of_refusals(error: tuple[int, str], kind: type[HostError], number: int) -> None:
    with opened(Office(CONTENT), NfcFaults(read_error=error), adapt=False) as disk:
        for _ in range(2):
            with pytest.raises(kind) as caught:
                read(disk, 0, 512)
            assert caught.value.code.number == number
        assert disk.metadata("adapterType") == "lsilogic"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_a_refused_write_fails_alone_and_says_where(mode: Mode, compression: CompressionName) -> None:
    office = Office(bytes(len(CONTENT)))
    faults = NfcFaults(write_error_ranges=((MIB + 300 * KIB, 512),))
    # Four fragments to a request: the host refuses the second of one.
    with opened(
        office, faults, mode=mode, compression=compression, writable=True, buffer_size=64 * KIB
    ) as disk:
        assert (disk.fragment_size, disk.request_size) == (64 * KIB, 256 * KIB)
        with pytest.raises(HostError, match=f"writing 262144 bytes at offset {MIB + 256 * KIB} "):
            disk.write_from(0, CONTENT)
        disk.write_from(2 * MIB, CONTENT[2 * MIB :])
        disk.write_from(0, CONTENT[:MIB])
        assert read(disk, 0, MIB) == CONTENT[:MIB]
    assert office.content()[2 * MIB :] == CONTENT[2 * MIB :]


# -- a host short of memory ----------------------------------------------------------------------------


def test_without_adaption_the_caller_reads_less() -> None:
    with opened(Office(CONTENT), NfcFaults(no_memory_over=64 * KIB), adapt=False) as disk:
        with pytest.raises(HostOutOfMemory) as caught:
            read(disk, 0, 256 * KIB)
        assert str(caught.value.code) == "VIX_E_OUT_OF_MEMORY (2)"
        assert read(disk, 0, 64 * KIB) == CONTENT[: 64 * KIB]
        assert disk.request_size == 256 * KIB


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_asks_for_less_until_the_host_can(mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vdkit.transports.nfc")
    pauses: list[float] = []
    with opened(
        Office(CONTENT),
        NfcFaults(no_memory_over=FLOOR),
        mode=mode,
        request_size=MIB,
        sleep=pauses.append,
        jitter=lambda: 1.0,
    ) as disk:
        assert read(disk) == CONTENT
        assert disk.request_size == FLOOR
        target_disk = MemoryDevice(len(CONTENT))
        copy(disk, target_disk)
        assert read(target_disk) == CONTENT
    # 512, 256, 128, 64 KiB: a pause and a line for each, however many requests were refused together.
    assert pauses == [0.05, 0.1, 0.2, 0.4]
    assert [record.levelname for record in caplog.records] == ["INFO"] * 4


def test_a_host_without_any_memory_is_told_after_a_while() -> None:
    pauses: list[float] = []
    faults = NfcFaults(no_memory_over=4096)
    with opened(Office(CONTENT), faults, request_size=MIB, sleep=pauses.append) as disk:
        with pytest.raises(HostOutOfMemory, match="while reading 65536 bytes"):
            read(disk)
        assert ATTEMPTS - 1 <= len(pauses) < ALL_ATTEMPTS
        assert read(disk, 0, 4096) == CONTENT[:4096]


def test_writes_are_tried_again_too() -> None:
    pauses: list[float] = []
    faults = NfcFaults(write_error=NO_MEMORY)
    with opened(Office(bytes(MIB)), faults, writable=True, sleep=pauses.append) as disk:
        with pytest.raises(HostOutOfMemory, match="while writing 65536 bytes"):
            disk.write_from(0, bytes(MIB))
        assert len(pauses) >= ATTEMPTS - 1


def test_many_threads_of_one_disk_adapt_together() -> None:
    results: list[bool] = []
    with opened(Office(CONTENT), NfcFaults(no_memory_over=FLOOR), request_size=MIB) as disk:
        threads = [
            threading.Thread(
                target=lambda n=n: results.append(read(disk, n * MIB, MIB) == CONTENT[n * MIB :][:MIB])
            )
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert disk.request_size == FLOOR
    assert results == [True] * 4


# -- resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_long_read_goes_on_where_it_stopped(mode: Mode) -> None:
    """Four times in its middle; what had come before is not asked for again."""
    asked: list[tuple[int, int]] = []
    office = Office(CONTENT)
    office.wrap = lambda inner: Counted(inner, asked)
    window, size = 4, 64 * KIB
    with served(office) as server:
        relays: list[Relay] = []
        cuts = deque([MIB, MIB, MIB, 300 * KIB])

        def opener() -> NfcDisk:
            relay = Relay("127.0.0.1", server.port, cut_to_client=cuts.popleft() if cuts else None)
            relays.append(relay.__enter__())
            return open_nfc(
                target(server, port=relay.port), mode=mode, window=window, request_size=size, timeouts=QUICK
            )

        with ResumingDisk(opener, sleep=lambda _: None, attempts=2) as disk:
            assert read(disk) == CONTENT
            assert disk.reopened == 4
        for relay in relays:
            relay.__exit__(None, None, None)
    wasted = sum(length for _, length in asked) - len(CONTENT)
    # What the window had in flight, and what stood in the buffers of sockets and relay.
    assert wasted <= 4 * window * size


@pytest.mark.parametrize("write", [False, True])
def test_unfinished_pieces_are_left_for_the_next_disk(write: bool) -> None:
    office = Office(bytes(len(CONTENT)) if write else CONTENT)
    with served(office, faults=NfcFaults(cut_after_messages=15)) as server:
        data = bytearray(CONTENT) if write else bytearray(len(CONTENT))
        todo = deque([(0, memoryview(data)[:MIB]), (MIB, memoryview(data)[MIB:])])
        rounds = 0
        while todo:
            rounds += 1
            before = sum(len(view) for _, view in todo)
            disk = open_nfc(target(server), writable=True, window=2, timeouts=QUICK)
            try:
                disk.write_rest(todo) if write else disk.read_rest(todo)
            except TransportError:
                assert 0 < sum(len(view) for _, view in todo) < before
            finally:
                # Closing what was written to tells that the connection is gone; that is not the point here.
                with suppress(TransportError):
                    disk.close()
        assert rounds >= 4
    assert (office.content() if write else bytes(data)) == CONTENT


def test_a_stuck_request_hits_its_deadline_while_others_are_answered() -> None:
    """The first read of the connection gets no reply; other threads' reads go on and on."""
    short = Timeouts(connect=5, request=5, read=0.4, write=5, close=0.3)
    with served(Office(CONTENT), faults=NfcFaults(stuck_reads_every=1 << 30)) as server:
        disk = open_nfc(target(server), mode="nbd", timeouts=short)
        session = disk._session
        # A sequence that the host never sees: registered, but not sent.
        stuck: list[TransportError] = []
        real = session._transmit
        session._transmit = lambda parts: None  # type: ignore[method-assign]
        begun = threading.Event()

        def hang() -> None:
            begun.set()
            try:
                read(disk, 0, 512)
            except TransportError as error:
                stuck.append(error)

        thread = threading.Thread(target=hang)
        thread.start()
        begun.wait()
        while not session._operations:
            pass
        session._transmit = real  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceeded, match=r"within 0\.4 seconds"):
            for _ in range(1_000_000):
                read(disk, MIB, 64 * KIB)
        thread.join()
        assert len(stuck) == 1
        assert "while reading 512 bytes at offset 0" in str(stuck[0])
        disk.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_stuck_request_is_resumed(mode: Mode) -> None:
    short = Timeouts(connect=5, request=5, read=0.3, write=5, close=0.2)
    with (
        served(Office(CONTENT), faults=NfcFaults(stuck_reads_every=7)) as server,
        ResumingDisk(
            lambda: open_nfc(target(server), mode=mode, timeouts=short), sleep=lambda _: None
        ) as disk,
    ):
        assert read(disk) == CONTENT
        assert 1 <= disk.reopened <= 4


# -- buffers -------------------------------------------------------------------------------------------


def test_buffers_step_down_to_what_the_host_grants() -> None:
    office = Office(CONTENT)
    with served(office) as server:
        for size, count, granted in (
            (None, None, 256 * KIB),
            (64 * KIB, 4, 64 * KIB),
            (MIB, 16, MIB),
            (16 * MIB, 1, 2 * MIB),
            (8 * MIB, 2, 2 * MIB),
            (8 * MIB, None, 2 * MIB),
        ):
            with open_nfc(
                target(server), buffer_size=size, buffer_count=count, writable=True, timeouts=QUICK
            ) as disk:
                assert disk.fragment_size == granted
                disk.write_from(0, CONTENT[MIB : 2 * MIB])
                assert read(disk, 0, MIB) == CONTENT[MIB : 2 * MIB]
        with open_nfc(target(server), request_size=100 * KIB // 4096 * 4096, timeouts=QUICK) as disk:
            assert disk.fragment_size == 128 * KIB
            assert read(disk, MIB, MIB) == CONTENT[MIB : 2 * MIB]
        for size, count in ((0, 1), (1000, 1), (MIB, 17), (64 * KIB, 0)):
            with pytest.raises(UsageError, match="NFC buffers"):
                open_nfc(target(server), buffer_size=size, buffer_count=count)


def test_a_handle_stays_valid_when_the_host_is_out_of_memory() -> None:
    """VDDK 6.0 against an unpatched host hung here; with retries off the caller decides what to do."""
    with served(Office(CONTENT), faults=NfcFaults(no_memory_over=64 * KIB)) as server:
        inner = ResumingDisk(
            lambda: open_nfc(target(server), adapt=False, timeouts=QUICK), attempts=1, sleep=lambda _: None
        )
        with DiskHandle(inner, "nbdssl", "a") as disk:
            for _ in range(3):
                with pytest.raises(HostOutOfMemory) as caught:
                    disk.read(0, 2048)
                assert str(caught.value.code) == "VIX_E_OUT_OF_MEMORY (2)"
                assert disk.read(0, 128) == CONTENT[: 64 * KIB]
            assert inner.reopened == 0
            assert server.connections == 1
