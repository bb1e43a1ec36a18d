"""Faults of the simulated data port that are about requests and connections, not about single records."""

from __future__ import annotations

import random

import pytest

from nfcbare import BareSession, bare
from nfctools import QUICK, Office, open_nfc, opened, served, target
from vdkit.errors import (
    ConnectionLost,
    DeadlineExceeded,
    HostError,
    HostOutOfMemory,
    TicketRefused,
    TransportError,
)
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Ledger, Limits
from vdkit.sim.ports import CODE_DISK, CODE_NO_MEMORY
from vdkit.transports.nfc import Timeouts

KIB = 1 << 10
MIB = 1 << 20
PATH = "[ds] vm/vm.vmdk"
SHORT = Timeouts(connect=5, request=0.3, read=0.3, write=0.3, close=0.3)


def content(size: int) -> bytes:
    return random.Random(7).randbytes(size)


@pytest.mark.parametrize("limit", [None, 64 * MIB])
def test_chunks_of_different_requests_are_mixed_and_each_comes_once(limit: int | None) -> None:
    ledger = Ledger(Limits(memory=limit))
    data = content(MIB)
    orders = []
    for seed in (1, 1, 2):
        with bare(ledger, Office(data), NfcFaults(chunks_shuffled=seed)) as client:
            client.open(PATH)
            client.reads(10, 4, 256 * KIB)
            order, found = [], {number: bytearray(256 * KIB) for number in range(10, 14)}
            for _ in range(16):
                sequence, length, text = client.reply()
                assert not text
                assert client.chunk is not None
                start = client.chunk.start
                found[sequence][start : start + length] = client.data
                order.append((sequence, start))
        assert all(part == data[: 256 * KIB] for part in found.values())
        assert len(set(order)) == 16
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]
    assert [sequence for sequence, _ in orders[0]] != sorted(sequence for sequence, _ in orders[0])
    assert ledger.memory == 0


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_our_client_puts_mixed_chunks_together(mode: str) -> None:
    data = content(4 * MIB)
    with opened(
        Office(data), NfcFaults(chunks_shuffled=3, chunk_size=20_000), mode=mode, timeouts=QUICK
    ) as disk:
        found = bytearray(len(data))
        disk.read_into(0, found)
    assert found == data


def test_an_error_of_the_storage_is_of_a_range() -> None:
    faults = NfcFaults(read_error_ranges=((64 * KIB, 512), (900 * KIB, KIB)))
    with bare(Ledger(), Office(bytes(MIB)), faults) as client:
        client.open(PATH)
        for offset, size, good in ((0, 64, True), (64, 64, False), (128, 512, True), (640, 384, False)):
            client.reads(10, 1, size * KIB, offset * KIB)
            _, value, text = client.reply()
            assert (not text) is good
            assert good or (value, text) == (CODE_DISK, "NfcAioReadFile failed: Input/output error")
            for _ in range(size // 64 - 1 if good else 0):
                client.reply()


def test_our_client_says_which_range_failed() -> None:
    with opened(Office(bytes(MIB)), NfcFaults(read_error_ranges=((512 * KIB, 512),)), timeouts=QUICK) as disk:
        disk.read_into(0, bytearray(256 * KIB))
        with pytest.raises(HostError, match="Input/output error"):
            disk.read_into(512 * KIB, bytearray(64 * KIB))
    faults = NfcFaults(write_error_ranges=((512 * KIB, 512),))
    office = Office(bytes(MIB))
    with opened(office, faults, writable=True, timeouts=QUICK) as disk:
        disk.write_from(0, b"y" * 512)
        with pytest.raises(HostError, match="Input/output error"):
            disk.write_from(512 * KIB, b"y" * 512)
    assert office.content() == (b"y" * 512).ljust(MIB, b"\0")


def test_a_host_without_memory_for_large_reads_serves_small_ones() -> None:
    with bare(Ledger(), Office(bytes(MIB)), NfcFaults(no_memory_over=64 * KIB)) as client:
        client.open(PATH)
        client.reads(10, 1, 65 * KIB)
        assert client.reply() == (
            10,
            CODE_NO_MEMORY,
            f"Failed to allocate the requested {65 * KIB + 24} bytes",
        )
        client.reads(11, 1, 64 * KIB)
        assert client.reply() == (11, 64 * KIB, "")
    with (
        opened(Office(bytes(MIB)), NfcFaults(no_memory_over=64 * KIB), adapt=False) as disk,
        pytest.raises(HostOutOfMemory),
    ):
        disk.read_into(0, bytearray(256 * KIB))


def test_a_reply_may_follow_an_error() -> None:
    faults = NfcFaults(no_memory_over=64 * KIB, error_twin=True)
    with bare(Ledger(), Office(content(MIB)), faults) as client:
        client.open(PATH)
        client.reads(10, 1, 128 * KIB)
        assert client.reply()[:2] == (10, CODE_NO_MEMORY)
        assert client.reply() == (10, 64 * KIB, "")
        assert client.reply() == (10, 64 * KIB, "")
        client.reads(11, 1, 512)
        assert client.reply() == (11, 512, "")
        assert client.data == content(MIB)[:512]


def test_every_second_read_waits_and_what_comes_meanwhile_is_counted() -> None:
    ledger = Ledger(Limits(memory=64 * MIB))
    with bare(ledger, Office(bytes(MIB)), NfcFaults(slow_reads=0.05, slow_reads_every=2)) as client:
        client.open(PATH)
        client.reads(10, 1, 64 * KIB)
        assert client.reply() == (10, 64 * KIB, "")
        client.reads(11, 1, 64 * KIB)
        client.reads(12, 1, 64 * KIB)
        assert [client.reply()[0], client.reply()[0]] == [11, 12]
    assert ledger.memory_peak == 128 * KIB


def test_a_stuck_read_is_never_answered_and_holds_its_memory() -> None:
    ledger = Ledger(Limits(memory=64 * MIB))
    with bare(ledger, Office(bytes(MIB)), NfcFaults(stuck_reads_every=2)) as client:
        client.open(PATH)
        client.reads(10, 4, 4 * KIB)
        assert [client.reply()[0], client.reply()[0]] == [10, 12]
        client.reads(20, 1, 512)
        assert client.reply()[0] == 20
        assert ledger.memory == 8 * KIB
    assert ledger.memory == 0
    with (
        opened(Office(bytes(MIB)), NfcFaults(stuck_reads_every=1), timeouts=SHORT) as disk,
        pytest.raises(DeadlineExceeded),
    ):
        disk.read_into(0, bytearray(512))


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
@pytest.mark.parametrize(
    "faults",
    [
        NfcFaults(reset_after_bytes=300_000),
        NfcFaults(reset_chance=0.05, reset_seed=4),
        NfcFaults(half_close_after_messages=14),
    ],
)
def test_our_client_sees_that_the_connection_is_gone(faults: NfcFaults, mode: str) -> None:
    with (
        opened(Office(bytes(16 * MIB)), faults, mode=mode, timeouts=QUICK) as disk,
        pytest.raises(ConnectionLost),
    ):
        for offset in range(0, 16 * MIB, MIB):
            disk.read_into(offset, bytearray(MIB))


def counted(client: BareSession) -> int:
    """Whole bytes that come until the connection ends."""
    total = 0
    while True:
        try:
            client.take(1)
        except TransportError:
            return total
        total += 1


def test_a_reset_falls_on_the_byte() -> None:
    # The reply to OPEN has 76 bytes.
    with bare(Ledger(), Office(bytes(MIB)), NfcFaults(reset_after_bytes=176)) as client:
        client.open(PATH)
        client.reads(10, 1, 512)
        assert counted(client) == 100


def test_a_half_closed_connection_still_takes_requests() -> None:
    with bare(Ledger(), Office(bytes(MIB)), NfcFaults(half_close_after_messages=2)) as client:
        client.open(PATH)
        client.reads(10, 2, 512)
        assert client.reply() == (10, 512, "")
        with pytest.raises(ConnectionLost):
            client.reply()
        client.reads(12, 1, 512)


def test_a_ticket_that_nobody_knows() -> None:
    with served(faults=NfcFaults(ticket_refused=True)) as server, pytest.raises(TicketRefused):
        open_nfc(target(server), timeouts=QUICK)
