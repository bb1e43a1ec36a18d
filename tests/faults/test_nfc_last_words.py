"""What a host said before it closed is heard, though sending fails; an interrupted call hangs nobody."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import pytest

from nfctools import QUICK, open_nfc, served, target
from vdkit.errors import ConnectionLost, HostOutOfMemory, TicketRefused, VixError
from vdkit.net.deadline import Deadline
from vdkit.net.secret import Secret
from vdkit.net.stream import Readable, Stream, WhileBlocked
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.transports.nfc import opening
from vdkit.transports.nfc import session as sessions
from vdkit.transports.nfc.operations import Exchange
from vdkit.wire.nfc import records
from vdkit.wire.nfc.handshake import Message
from vdkit.wire.nfc.records import Opcode


class Fake(Stream):
    """``incoming`` is what the peer had sent before it closed; after ``sends`` messages it is gone.

    Whoever receives waits until ``may_receive``.
    """

    peer = "host:902"

    def __init__(self, incoming: bytes = b"", *, sends: int = 0) -> None:
        self._incoming = deque(incoming)
        self._sends = sends
        self.may_receive = threading.Event()
        self.receiving = threading.Event()

    def send(
        self, parts: Sequence[Readable], deadline: Deadline, blocked: WhileBlocked | None = None
    ) -> None:
        self._sends -= 1
        if self._sends < 0:
            self.may_receive.set()
            raise self.lost("the connection broke: Connection reset by peer")

    def recv_into(self, view: memoryview, deadline: Deadline) -> int:
        raise NotImplementedError

    def recv_exact(self, view: memoryview, deadline: Deadline) -> None:
        self.receiving.set()
        assert self.may_receive.wait(30)
        if len(self._incoming) < len(view):
            raise self.lost()
        view[:] = bytes(self._incoming.popleft() for _ in view)

    def wait(self, deadline: Deadline, *, readable: bool, writable: bool) -> bool:
        return readable

    def close(self) -> None: ...

    def abort(self) -> None:
        self._incoming.clear()


def test_an_error_in_the_handshake_though_the_host_closed_before_all_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(faults=NfcFaults(classic_error_at=Message.PROBE_REPLY)) as server:

        def until_it_has_closed(messages: Iterable[bytes]) -> Iterator[bytes]:
            *most, last = messages
            yield from most
            while server.connections:
                time.sleep(0.001)
            yield last  # answered with a reset
            yield last

        real = opening._converse
        monkeypatch.setattr(
            opening, "_converse", lambda s, messages, *rest: real(s, until_it_has_closed(messages), *rest)
        )
        for mode in ("nbd", "nbdssl"):
            with pytest.raises(HostOutOfMemory, match="Failed to allocate"):
                open_nfc(target(server), mode=mode, timeouts=QUICK)


def test_a_refusal_in_the_dialogue_though_sending_fails() -> None:
    refusing = Fake(b"530 Login incorrect.\r\n")
    with pytest.raises(TicketRefused, match="530 Login"):
        opening._ask(refusing, Secret("t"), b"BANNER\r\n", "BANNER", QUICK)
    for said in (b"", b"220 fine\r\n"):
        with pytest.raises(ConnectionLost, match="reset"):
            opening._ask(Fake(said), Secret("t"), b"BANNER\r\n", "BANNER", QUICK)


def hello() -> Exchange:
    return Exchange(Opcode.HELLO, "saying hello", records.encode_hello, seconds=30, fatal=False)


def test_a_reply_that_has_come_is_not_lost_when_another_thread_cannot_send() -> None:
    stream = Fake(records.encode_error(0, 5, "no memory"), sends=1)
    session = sessions.Session(stream, "host:902", "[ds] a.vmdk", window=8, timeouts=QUICK)
    got: list[VixError | None] = []

    def receive() -> None:
        try:
            got.append(session.exchange(hello()).refused)
        except VixError as error:
            got.append(error)

    receiver = threading.Thread(target=receive)
    receiver.start()
    assert stream.receiving.wait(30)
    with pytest.raises(ConnectionLost):
        session.exchange(hello())
    receiver.join()
    assert [type(error) for error in got] == [HostOutOfMemory]


class Interrupting(threading.Condition):
    """Ctrl-C just after a thread has become the receiver."""

    session: sessions.Session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken = self.session._receiver
        super().__exit__(kind, error, trace)
        if taken and kind is None:
            self.session._changed = threading.Condition(threading.Lock())
            raise KeyboardInterrupt


def test_an_interrupt_just_after_a_thread_became_the_receiver_hangs_nobody() -> None:
    session = sessions.Session(Fake(sends=1), "host:902", "[ds] a.vmdk", window=8, timeouts=QUICK)
    condition = session._changed = Interrupting(threading.Lock())
    condition.session = session
    ended: list[BaseException] = []

    def call() -> None:
        try:
            session.exchange(hello())
        except BaseException as error:  # noqa: BLE001
            ended.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(30)
    assert [type(error) for error in ended] == [KeyboardInterrupt]
