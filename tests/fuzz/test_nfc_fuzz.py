"""Random bytes from either side: only errors of ours at the client, only a closed connection at the host."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable

import pytest

from nfctools import QUICK, Office, open_nfc, other_certificate, scripted, served, target
from vdkit.errors import ProtocolError, VixError
from vdkit.net.connect import connect
from vdkit.net.deadline import Deadline
from vdkit.net.secret import Secret
from vdkit.net.stream import SocketStream
from vdkit.net.tls import TlsStream
from vdkit.net.trust import client_context
from vdkit.sim.certificates import context_of
from vdkit.transports.nfc import NfcDisk, NfcTarget, Timeouts
from vdkit.transports.nfc.compressing import Compressing
from vdkit.transports.nfc.pace import Pace
from vdkit.transports.nfc.session import Session
from vdkit.wire.nfc import classic, codecs, dialogue, greeting, handshake, records
from vdkit.wire.nfc.records import OpenReply

pytestmark = pytest.mark.usefixtures("no_leaks")
SHORT = Timeouts(connect=5, request=5, read=5, write=5, close=0.2)

DECODERS: list[Callable[[bytes], object]] = [
    records.decode_hello,
    records.decode_sockopts,
    records.decode_respool,
    records.decode_open,
    records.decode_open_reply,
    records.decode_close,
    records.decode_io,
    records.decode_error,
    records.decode_ddb_get,
    records.decode_ddb_reply,
    records.decode_map,
    records.decode_map_reply,
    greeting.parse_greeting,
    dialogue.parse_command,
    dialogue.parse_banner,
    dialogue.parse_thumbprint,
    lambda data: dialogue.parse_connect(data, tls=True),
    handshake.parse_tag,
    handshake.parse_version,
    handshake.parse_name,
    handshake.parse_error,
    classic.decode_put,
    classic.decode_get,
    classic.decode_data_head,
    classic.decode_body,
]


def noise(dice: random.Random) -> bytes:
    """Random bytes, sometimes of the right length, sometimes behind a right beginning."""
    starts = [
        b"",
        b"220 ",
        b"200 ",
        b"\x21\x43\x65\x87",
        b"\x78\x01",
        b"\x10\0\0\0",
        b"\x14\0\0\0",
        b"\x36\0\0\0",
    ]
    data = dice.choice(starts) + dice.randbytes(dice.choice([0, 1, 8, 16, 44, 48, 60, 100, 264, 1000]))
    return data[: dice.choice([4, 16, 44, 48, 60, 264, 2000])]


def test_decoders() -> None:
    dice = random.Random(1)
    for _ in range(3000):
        data = noise(dice)
        for decode in DECODERS:
            try:
                decode(data)
            except ProtocolError:
                continue


def test_codecs() -> None:
    dice = random.Random(2)
    for _ in range(3000):
        length = dice.choice([1, 16, 512, 4096])
        wire = dice.choice([noise(dice), length.to_bytes(4, "little") + noise(dice)])
        try:
            codecs.decode_into(dice.choice([0, 1, 2, 3, 7]), memoryview(wire), memoryview(bytearray(length)))
        except ProtocolError:
            continue


# -- the client faces a host that sends noise ----------------------------------------------------------


def disk_over(port: int) -> NfcDisk:
    """A disk whose session is already open, so that the noise meets the records."""
    stream = SocketStream(connect("127.0.0.1", port, Deadline.after(5)), f"127.0.0.1:{port}")
    aim = NfcTarget("127.0.0.1", port, Secret("t"), "nfc", None, None, "[ds] a")
    session = Session(stream, aim.where, aim.path, window=4, timeouts=SHORT)
    return NfcDisk(
        session,
        aim,
        OpenReply(0, 1, 2, 0x1A, 1 << 20, 512, 1, 255, 63),
        writable=True,
        compressing=Compressing(codecs.Compression.SKIPZ),
        fragment=65536,
        pace=Pace("a", size=65536, in_flight=1 << 20, told=session.limit_in_flight, sleep=lambda _: None),
        timeouts=SHORT,
    )


def record_noise(dice: random.Random) -> bytes:
    """A record that is right in parts."""
    opcode = dice.choice([1, 2, 3, 4, 5, 7, 7, 7, 9, 11, 13, 22, dice.randrange(100)])
    length = dice.choice([0, 4, 16, 44, 44, 44, 48, 60, dice.randrange(5000)])
    io = records.Io(
        dice.choice([0, 0, 0, 5]),
        dice.choice([1, 1, 0, 9]),
        dice.choice([0, 1, 2, 3]),
        dice.choice([0, 0, 512]),
        dice.choice([65536, 65536, 512]),
        dice.choice([0, 0, 512, 70000]),
        dice.choice([512, 65536, 0, 2**32 - 1]),
        dice.choice([512, 65536, 0, 8, 2**31]),
    )
    body = records.encode_io(0, io)[16:] if length == 44 else dice.randbytes(min(length, 5000))
    return records.header(opcode, length, dice.choice([0, 0, 1, 2, 9])) + body + dice.randbytes(600)


@pytest.mark.parametrize("seed", range(60))
def test_noise_for_records(seed: int) -> None:
    dice = random.Random(seed)

    def send(sock: socket.socket) -> None:
        sock.recv(60)
        for _ in range(4):
            sock.sendall(record_noise(dice))

    with scripted(send) as port:
        disk = disk_over(port)
        with pytest.raises(VixError):
            match seed % 4:
                case 0:
                    disk.write_from(0, bytes(100 * 512))
                case 1:
                    for _ in disk.extents():
                        disk.metadata("x")
                    disk.read_into(0, bytearray(1 << 20))
                case _:
                    disk.read_into(0, bytearray(1 << 20))
        with pytest.raises(VixError):
            disk.read_into(0, bytearray(512))
        with contextlib.suppress(VixError):
            disk.close()


@pytest.mark.parametrize("seed", range(12))
def test_noise_while_opening(seed: int) -> None:
    """In the greeting, the dialogue, and the handshake of a host with the right certificate."""
    dice = random.Random(seed)
    mine = other_certificate()

    def play(sock: socket.socket) -> None:
        stream = SocketStream(sock.dup(), "client")
        late = Deadline.after(5)
        try:
            if seed % 3 == 0:
                stream.send((noise(dice) + b"\n",), late)
                return
            stream.send((greeting.build_greeting(),), late)
            tls = TlsStream(stream, context_of(mine), server=True)
            tls.handshake(late)
            for _ in range(2):
                tls.read_line(1024, late, "a line")
            if seed % 3 == 1:
                tls.send((noise(dice) + b"\r\n",), late)
                return
            tls.send((dialogue.BANNER_REPLY,), late)
            tls.send((noise(dice) + bytes(264),), late)
        except VixError:
            return
        finally:
            stream.close()

    with scripted(play) as port:
        aim = NfcTarget("127.0.0.1", port, Secret("t"), "nfc", mine.sha1, None, "[ds] a")
        with pytest.raises(VixError):
            open_nfc(aim, mode="nbd", timeouts=SHORT)


# -- the host faces a client that sends noise ----------------------------------------------------------


def session_of(port: int, dice: random.Random, depth: int) -> None:
    """Go some steps in good order, then send noise and wait for the end."""
    raw = SocketStream(connect("127.0.0.1", port, Deadline.after(5)), "host")
    late = Deadline.after(20)
    try:
        raw.read_line(4096, late, "the greeting")
        if depth == 0:
            raw.send((noise(dice) + bytes(300),), late)
            drain(raw)
            return
        tls = TlsStream(raw, client_context())
        tls.handshake(late)
        if depth == 1:
            tls.send((noise(dice) + b"\n" + noise(dice) + b"\xff\n",), late)
            tls.send((bytes(2000),), late)
            drain(tls)
            return
        from nfctools import TICKET

        tls.send((dialogue.session_line(TICKET), dialogue.proxy_line("nfc")), late)
        tls.read_line(1024, late, "the reply")
        clear = tls.abandon()
        for message in (
            handshake.build_tag("x"),
            handshake.build_probe(),
            handshake.build_version(12, 1),
            handshake.build_name("n"),
            handshake.build_features(),
            handshake.build_ready(),
        )[: 6 if depth > 2 else dice.randrange(6)]:
            clear.send((message,), late)
        if depth > 2:
            clear.send(
                (records.encode_hello(0), records.encode_open(3, "[ds] vm/vm.vmdk", writable=True)), late
            )
        clear.send((b"".join(record_noise(dice) for _ in range(3)) + bytes(5000),), late)
        drain(clear)
    except VixError:
        return
    finally:
        raw.abort()
        raw.close()


def drain(stream: SocketStream | TlsStream) -> None:
    view = memoryview(bytearray(65536))
    late = Deadline.after(20)
    while stream.recv_into(view, late):
        pass


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_noise_for_the_host(depth: int, caplog: pytest.LogCaptureFixture) -> None:
    dice = random.Random(depth)
    with served(Office(bytes(1 << 20))) as server:
        threads = [
            threading.Thread(target=session_of, args=(server.port, random.Random(dice.random()), depth))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # It still serves.
        with open_nfc(target(server), timeouts=QUICK) as disk:
            disk.read_into(0, bytearray(512))
    assert "the handler failed" not in caplog.text
