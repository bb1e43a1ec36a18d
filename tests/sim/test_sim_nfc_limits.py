"""The simulated data port counts memory and connections over all sessions, and has no more than it has."""

from __future__ import annotations

import socket
import time

import pytest

from nfcbare import bare
from nfctools import Office, open_nfc, served, target
from vdkit.errors import HostError, TransportError
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Ledger, Limits
from vdkit.sim.ports import CODE_NO_MEMORY
from vdkit.wire.nfc import records
from vdkit.wire.nfc.records import Opcode

MIB = 1 << 20
KIB = 1 << 10


def test_requests_that_have_come_are_counted_before_the_oldest_is_served() -> None:
    ledger = Ledger(Limits(memory=64 * MIB))
    with bare(ledger, Office(bytes(MIB))) as client:
        client.open("[ds] vm/vm.vmdk")
        client.reads(10, 8, MIB)
        taken = 0
        while taken < 8 * MIB:
            _, length, text = client.reply()
            assert not text
            taken += length
    assert ledger.memory_peak == 8 * MIB
    assert ledger.memory_total == 8 * MIB
    assert (ledger.memory, ledger.memory_refused) == (0, 0)


def test_a_request_over_the_limit_is_refused_and_the_session_goes_on() -> None:
    ledger = Ledger(Limits(memory=3 * MIB))
    with bare(ledger, Office(bytes(MIB))) as client:
        client.open("[ds] vm/vm.vmdk")
        client.reads(10, 5, MIB)
        answers: dict[int, int] = {}
        refused = []
        while sum(answers.values()) < 3 * MIB or len(refused) < 2:
            sequence, value, text = client.reply()
            if text:
                refused.append((sequence, value, text))
            else:
                answers[sequence] = answers.get(sequence, 0) + value
        assert answers == {10: MIB, 11: MIB, 12: MIB}
        told = f"Failed to allocate the requested {MIB + 24} bytes"
        assert refused == [(13, CODE_NO_MEMORY, told), (14, CODE_NO_MEMORY, told)]
        client.reads(20, 1, 64 * KIB)
        assert client.reply() == (20, 64 * KIB, "")
    assert (ledger.memory_peak, ledger.memory_refused, ledger.memory) == (3 * MIB, 2, 0)


def test_two_sessions_share_the_memory() -> None:
    ledger = Ledger(Limits(memory=MIB))
    office = Office(bytes(MIB))
    with bare(ledger, office) as one, bare(ledger, office) as other:
        one.open("[ds] vm/vm.vmdk")
        other.open("[ds] vm/vm.vmdk")
        # As a request that has come and whose answer the client does not take yet.
        assert ledger.take(MIB - 64 * KIB)
        one.reads(10, 1, 128 * KIB)
        assert one.reply()[1] == CODE_NO_MEMORY
        other.reads(10, 1, 64 * KIB)
        assert other.reply() == (10, 64 * KIB, "")
        ledger.give(MIB - 64 * KIB)
    assert ledger.memory == 0


def test_a_session_that_breaks_gives_back_what_its_requests_held() -> None:
    ledger = Ledger(Limits(memory=64 * MIB))
    with bare(ledger, Office(bytes(16 * MIB))) as client:
        client.open("[ds] vm/vm.vmdk")
        client.reads(10, 4, 16 * MIB)
        client.reply()
    assert ledger.memory_peak >= 16 * MIB
    assert ledger.memory == 0


def test_the_client_reads_through_a_host_that_counts() -> None:
    content = bytes(range(256)) * (4 * KIB)
    office = Office(content)
    with served(office, limits=Limits(memory=48 * MIB)) as server:
        for mode in ("nbd", "nbdssl"):
            with open_nfc(target(server), mode=mode, writable=True) as disk:
                data = bytearray(len(content))
                disk.read_into(0, data)
                assert data == content
                disk.write_from(512, b"x" * 512)
                disk.write_from(512, content[512:1024])
        assert 256 * KIB <= server.ledger.memory_peak <= 48 * MIB
        assert server.ledger.memory_total == 2 * (len(content) + 2 * 512)


def test_a_session_whose_buffers_do_not_fit_is_refused_as_a_request_is() -> None:
    ledger = Ledger(Limits(memory=MIB))
    with bare(ledger, Office(bytes(MIB))) as client:
        client.send(records.encode_hello(0, 256 * KIB, 8))
        sequence, code, text = client.reply()
        assert (sequence, code) == (0, CODE_NO_MEMORY)
        assert text == f"Failed to allocate the requested {2 * MIB} bytes"
        client.send(records.encode_hello(1, 256 * KIB, 4))
        assert records.parse_header(client.take(records.HEADER_SIZE)).opcode == Opcode.HELLO


@pytest.mark.parametrize(("refusal", "seen"), [("greeting", b"421 "), ("close", b"")])
def test_a_connection_too_many_is_turned_away(refusal: str, seen: bytes) -> None:
    faults = NfcFaults(connection_refusal=refusal)  # type: ignore[arg-type]
    with served(limits=Limits(connections=1), faults=faults) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as first:
            assert first.recv(4) == b"220 "
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as second:
                assert second.recv(4) == seen
            ledger = server.ledger
            assert (ledger.connections, ledger.connections_peak, ledger.connections_refused) == (1, 1, 1)
        while server.ledger.connections:
            time.sleep(0.001)
        with open_nfc(target(server)):
            pass


def test_a_connection_too_many_may_find_silence() -> None:
    with (
        served(limits=Limits(connections=0), faults=NfcFaults(connection_refusal="hang")) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as one,
        pytest.raises(TimeoutError),
    ):
        one.recv(4)


def test_our_client_says_that_there_was_no_room() -> None:
    with served(limits=Limits(connections=0)) as server, pytest.raises((TransportError, HostError)) as caught:
        open_nfc(target(server))
    assert "too many connections" in str(caught.value)


def test_writes_hold_memory_until_they_are_answered() -> None:
    """One that does not fit is refused whole; what a broken session had begun is given back."""
    office = Office(bytes(MIB))
    with served(office, limits=Limits(memory=256 * KIB)) as server:
        with open_nfc(target(server), writable=True, request_size=128 * KIB, buffer_size=64 * KIB) as disk:
            disk.write_from(0, bytes(range(256)) * (4 * KIB))
        assert server.ledger.memory_total == MIB
        assert server.ledger.memory == 0 < server.ledger.memory_peak
        with (
            open_nfc(
                target(server), writable=True, request_size=512 * KIB, buffer_size=64 * KIB, adapt=False
            ) as disk,
            pytest.raises(HostError, match="Failed to allocate"),
        ):
            disk.write_from(0, bytes(512 * KIB))
        assert server.ledger.memory_refused
        assert server.ledger.memory == 0
    assert office.content() == bytes(range(256)) * (4 * KIB)
