"""The connection is cut after every message and after many byte counts: an error, no hang, nothing left.

That nothing is left (threads, descriptors) is checked for every test of this folder.
"""

from __future__ import annotations

import random
import threading

import pytest

from nfctools import PATH, QUICK, TICKET, Office, certificate, open_nfc, served, target
from vdkit.errors import ConnectionLost, DeadlineExceeded, ProtocolError, TransportError
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_server import NfcServer
from vdkit.testing.relay import Relay
from vdkit.transports.nfc import Mode, NfcDisk

MIB = 1 << 20
CONTENT = random.Random(7).randbytes(2 * MIB)
MODES: tuple[Mode, ...] = ("nbd", "nbdssl")
#: Until a disk is open: greeting, BANNER, THUMBPRINT, PROXY, 36, 51, 52, HELLO, SOCKOPTS, RESPOOL, OPEN.
OPENING_MESSAGES = 11
#: Then eight chunks of 256 KiB of the read, eight acknowledged writes, CLOSE, END.
MESSAGES = OPENING_MESSAGES + 8 + 8


def job(server: NfcServer, mode: Mode, port: int | None = None) -> None:
    """Read all, write all, in one session."""
    with open_nfc(target(server, port=port), mode=mode, writable=True, timeouts=QUICK) as disk:
        data = bytearray(len(CONTENT))
        disk.read_into(0, data)
        assert data == CONTENT
        disk.write_from(0, CONTENT)


def said(error: TransportError, port: int) -> None:
    text = str(error)
    assert text.startswith(f"127.0.0.1:{port}: ")
    assert PATH in text
    assert TICKET not in text
    assert ", in the " in text or ", while " in text


@pytest.mark.parametrize("mode", MODES)
def test_after_every_message(mode: Mode) -> None:
    with served(Office(CONTENT)) as server:
        for count in range(1, MESSAGES + 1):
            server.faults = NfcFaults(cut_after_messages=count)
            with pytest.raises(ConnectionLost) as caught:
                job(server, mode)
            said(caught.value, server.port)
            assert caught.value.retryable
        server.faults = NfcFaults()
        job(server, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("direction", ["cut_to_client", "cut_to_server"])
@pytest.mark.parametrize("reset", [False, True])
def test_after_some_bytes(mode: Mode, direction: str, reset: bool) -> None:
    dice = random.Random(f"{mode} {direction} {reset}")
    cuts = [1, 2, 100, 263, 264, *(dice.randrange(1, 6000) for _ in range(12))]
    cuts += [dice.randrange(1, len(CONTENT)) for _ in range(8)]
    with served(Office(CONTENT)) as server:
        for cut in cuts:
            with Relay("127.0.0.1", server.port, reset=reset, **{direction: cut}) as relay:
                with pytest.raises((ConnectionLost, ProtocolError)) as caught:
                    job(server, mode, relay.port)
                said(caught.value, relay.port)


@pytest.mark.parametrize("mode", MODES)
def test_every_thread_gets_the_error(mode: Mode) -> None:
    """Readers and writers on one connection, which breaks under them."""
    caught: list[TransportError] = []

    def work(disk: NfcDisk, number: int) -> None:
        data = bytearray(CONTENT)
        try:
            while True:
                if number % 2:
                    disk.read_into(0, data)
                else:
                    disk.write_from(0, CONTENT)
        except TransportError as error:
            caught.append(error)

    with (
        served(Office(CONTENT)) as server,
        open_nfc(target(server), mode=mode, writable=True, timeouts=QUICK) as disk,
    ):
        threads = [threading.Thread(target=work, args=(disk, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        disk.read_into(0, bytearray(MIB))
        server.break_connections()
        for thread in threads:
            thread.join()
        assert len(caught) == 4
        assert len({str(error) for error in caught}) == 1
        said(caught[0], server.port)


@pytest.mark.parametrize("mode", MODES)
def test_threads_share_one_connection(mode: Mode) -> None:
    """Reads and writes in four threads, more than the window, come out right."""
    parts = 4
    size = len(CONTENT) // parts
    office = Office(bytes(len(CONTENT)) + CONTENT)
    failed: list[BaseException] = []

    def work(disk: NfcDisk, number: int) -> None:
        try:
            mine = slice(number * size, (number + 1) * size)
            data = bytearray(size)
            for _ in range(3):
                disk.write_from(mine.start, CONTENT[mine])
                disk.read_many([(len(CONTENT) + mine.start, data)])
                assert data == CONTENT[mine]
                disk.read_into(mine.start, data)
                assert data == CONTENT[mine]
        except BaseException as error:
            failed.append(error)
            raise

    with (
        served(office) as server,
        open_nfc(
            target(server), mode=mode, writable=True, window=6, request_size=65536, timeouts=QUICK
        ) as disk,
    ):
        threads = [threading.Thread(target=work, args=(disk, n)) for n in range(parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert office.content() == CONTENT + CONTENT


def test_stop_breaks_open_connections() -> None:
    server = NfcServer(Office(CONTENT), certificate()).start()
    disk = open_nfc(target(server), timeouts=QUICK)
    assert server.connections == 1
    server.stop()
    with pytest.raises(ConnectionLost):
        disk.read_into(0, bytearray(512))
    disk.close()


def test_an_interrupted_call_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C in the middle of a record nothing on the connection can be told apart any more."""
    with served(Office(CONTENT)) as server, open_nfc(target(server), timeouts=QUICK) as disk:
        session = disk._session
        real, calls = session._stream.recv_exact, 0

        def interrupted(view: memoryview, deadline: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 6:
                raise KeyboardInterrupt
            real(view, deadline)  # type: ignore[arg-type]

        monkeypatch.setattr(session._stream, "recv_exact", interrupted)
        with pytest.raises(KeyboardInterrupt):
            disk.read_into(0, bytearray(MIB))
        with pytest.raises(ConnectionLost, match="given up after KeyboardInterrupt, while reading"):
            disk.read_into(0, bytearray(512))


def test_a_delay_is_only_a_delay() -> None:
    with (
        served(Office(CONTENT)) as server,
        Relay("127.0.0.1", server.port, to_server=0.002, to_client=0.002) as relay,
    ):
        job(server, "nbdssl", relay.port)


def test_closing_a_written_disk_tells_when_it_fails() -> None:
    with served(Office(CONTENT), faults=NfcFaults(cut_after_messages=OPENING_MESSAGES + 1)) as server:
        disk = open_nfc(target(server), writable=True, timeouts=QUICK)
        # The acknowledgement is the last message that comes.
        disk.write_from(0, bytes(512))
        with pytest.raises((ConnectionLost, DeadlineExceeded), match="while closing the disk"):
            disk.close()
        disk.close()
