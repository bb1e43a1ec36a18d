"""From a TCP connection to a disk session: greeting, ticket dialogue, TLS twice, handshake.

The order and every byte are those of our NFC specification, sections 3 to 7.
"""

from __future__ import annotations

import hmac
import secrets
import string
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from vdkit.errors import (
    ConnectionLost,
    HostError,
    ModeUnavailable,
    ProtocolError,
    TicketRefused,
    TransportError,
    TrustError,
    UsageError,
)
from vdkit.net.connect import connect, without_zone
from vdkit.net.deadline import Deadline
from vdkit.net.secret import Secret
from vdkit.net.stream import SocketStream, Stream
from vdkit.net.tls import TlsStream
from vdkit.net.trust import Trust, client_context, sha256_thumbprint
from vdkit.transports.nfc.host_errors import host_error, in_phase
from vdkit.transports.nfc.target import LAST_WORDS, Mode, NfcTarget, Timeouts
from vdkit.wire.nfc import dialogue, handshake
from vdkit.wire.nfc.greeting import Greeting, parse_greeting
from vdkit.wire.nfc.handshake import Message
from vdkit.wire.nfc.limits import MAX_GREETING, MAX_LINE

#: Tags are drawn from 64 characters, so that each has 6 bits.
_TAG_CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_TAG_LENGTH = 16
CLIENT_NAME = "vdkit"
_FRESH_TICKET = "tickets are used up by one connection and expire soon: ask for a fresh one"


def open_stream(target: NfcTarget, mode: Mode, timeouts: Timeouts) -> Stream:
    """The stream of a disk session, ready for the first record. The caller closes it."""
    where, tls = target.where, mode == "nbdssl"
    trust = _trust(target)
    with phase(target, "while connecting"):
        sock = connect(target.host, target.port, Deadline.after(timeouts.connect))
    raw = SocketStream(sock, where)
    try:
        with phase(target, "in the greeting"):
            greeting = _greet(raw, tls, timeouts)
        with phase(target, "in the first TLS handshake"):
            first = TlsStream(
                raw, client_context(legacy=target.legacy_tls), hostname=without_zone(target.host)
            )
            first.handshake(Deadline.after(timeouts.request))
            leaf = first.peer_certificate()
            # Before the ticket is sent: a wrong peer never sees it.
            trust.check(leaf, where)
        assert leaf is not None
        with phase(target, "in the ticket dialogue"):
            tag = "".join(secrets.choice(_TAG_CHARACTERS) for _ in range(_TAG_LENGTH))
            _present_ticket(first, target, greeting, tag, leaf, tls, timeouts)
            stream: Stream = first.abandon()
        if tls:
            with phase(target, "in the second TLS handshake"):
                stream = _second_session(raw, target, leaf, timeouts)
        with phase(target, "in the handshake"):
            _shake_hands(stream, tag, timeouts)
    except BaseException:
        raw.close()
        raise
    return stream


@contextmanager
def phase(target: NfcTarget, name: str) -> Iterator[None]:
    """Errors from within say the phase and the disk, and the host even where a codec raised them."""
    try:
        yield
    except TransportError as error:
        raise in_phase(error, target.where, f"{name} (disk {target.path})") from error


def _trust(target: NfcTarget) -> Trust:
    if not (target.thumbprint or target.certificate):
        raise TrustError(
            f"{target.where}: the ticket carries neither a thumbprint nor a certificate to check"
        )
    try:
        if not target.thumbprint:
            return Trust(certificate=target.certificate)
        return replace(Trust.of_thumbprint(target.thumbprint), certificate=target.certificate)
    except UsageError as error:
        # The host's doing, not the caller's.
        raise ProtocolError(f"{target.where}: the ticket's pin is none: {error.message}") from error


def _greet(raw: SocketStream, tls: bool, timeouts: Timeouts) -> Greeting:
    line = raw.read_line(MAX_GREETING, Deadline.after(timeouts.request), "the greeting")
    greeting = parse_greeting(line)
    if tls and not greeting.tls_disk:
        raise ModeUnavailable(
            "the host does not offer disks in TLS", remedy="use the transport nbd, in clear, if you may"
        )
    return greeting


def _present_ticket(
    stream: Stream,
    target: NfcTarget,
    greeting: Greeting,
    tag: str,
    leaf: bytes,
    tls: bool,
    timeouts: Timeouts,
) -> None:
    stream.send((dialogue.session_line(target.ticket.reveal()),), Deadline.after(timeouts.request))
    # SESSION has no reply: a ticket that is not accepted shows in the next ones.
    line = _ask(stream, target.ticket, dialogue.BANNER, "BANNER", timeouts)
    dialogue.parse_banner(line)
    if greeting.sha256:
        line = _ask(stream, target.ticket, dialogue.thumbprint_line(tag), "THUMBPRINT_SHA2", timeouts)
        announced = dialogue.parse_thumbprint(line)
        presented = sha256_thumbprint(leaf)
        if not hmac.compare_digest(announced, presented.replace(":", "")):
            raise TrustError(
                f"{target.where}: the host announces another certificate than it presented: "
                f"expected SHA-256 {presented}, announced {announced}"
            )
    _proxy(stream, target, greeting, tls, timeouts)


def _proxy(stream: Stream, target: NfcTarget, greeting: Greeting, tls: bool, timeouts: Timeouts) -> None:
    service = dialogue.proxy_service(target.service, tls=tls)
    fallback = dialogue.fallback_service(tls=tls)
    try:
        line = _ask(stream, target.ticket, dialogue.proxy_line(service), "PROXY", timeouts)
    except TicketRefused:
        if service == fallback:
            _refuse_clear(stream, target, greeting, tls, timeouts)
            raise
        try:
            line = _ask(stream, target.ticket, dialogue.proxy_line(fallback), "PROXY", timeouts)
        except TicketRefused:
            _refuse_clear(stream, target, greeting, tls, timeouts)
            raise
    dialogue.parse_connect(line, tls=tls)


def _refuse_clear(
    stream: Stream, target: NfcTarget, greeting: Greeting, tls: bool, timeouts: Timeouts
) -> None:
    """Whether it was the session in clear that was refused, not the ticket: one in TLS is then granted.

    The connection is of no use after that. Raises ModeUnavailable if so; otherwise returns.
    """
    if tls or not greeting.tls_disk:
        return
    service = dialogue.proxy_service(target.service, tls=True)
    try:
        line = _ask(stream, target.ticket, dialogue.proxy_line(service), "PROXY", timeouts)
        dialogue.parse_connect(line, tls=True)
    except TransportError:
        return
    raise ModeUnavailable("the host offers disks in TLS only", remedy="use the transport nbdssl")


def _ask(stream: Stream, ticket: Secret, line: bytes, what: str, timeouts: Timeouts) -> bytes:
    """Send one line and read its reply; a reply of class 4 or 5 is a refusal."""
    lost: ConnectionLost | None = None
    try:
        stream.send((line,), Deadline.after(timeouts.request))
    except ConnectionLost as error:
        lost = error
    patience = timeouts.request if lost is None else LAST_WORDS
    try:
        reply = stream.read_line(MAX_LINE, Deadline.after(patience), f"the reply to {what}")
    except TransportError:
        if lost is not None:
            raise lost from None
        raise
    # What the host says is shown in errors, so it must not quote the ticket back.
    reply = reply.replace(ticket.reveal().encode("ascii"), b"***")
    code = dialogue.reply_code(reply)
    if lost is not None and (code is None or code < 400):
        raise lost
    if code is not None and code >= 400:
        shown = reply.rstrip().decode("ascii", "replace")[:80]
        raise TicketRefused(f"{stream.peer}: the host answered {what} with {shown!r}", remedy=_FRESH_TICKET)
    return reply


def _second_session(raw: SocketStream, target: NfcTarget, leaf: bytes, timeouts: Timeouts) -> TlsStream:
    stream = TlsStream(raw, client_context(legacy=target.legacy_tls), hostname=without_zone(target.host))
    stream.handshake(Deadline.after(timeouts.request))
    second = stream.peer_certificate() or b""
    if not hmac.compare_digest(leaf, second):
        raise TrustError(
            f"{target.where}: the second TLS session presents another certificate than the first: "
            f"expected SHA-256 {sha256_thumbprint(leaf)}, presented SHA-256 {sha256_thumbprint(second)}",
            remedy="somebody may be in between",
        )
    return stream


def _shake_hands(stream: Stream, tag: str, timeouts: Timeouts) -> None:
    first = (
        handshake.build_tag(tag),
        handshake.build_probe(),
        handshake.build_version(*handshake.CLIENT_VERSION),
    )
    _converse(stream, first, (Message.PROBE_REPLY, Message.VERSION), timeouts)
    second = (
        handshake.build_name(CLIENT_NAME),
        handshake.build_features(),
        handshake.build_ready(),
    )
    _converse(stream, second, (Message.READY,), timeouts)


def _converse(
    stream: Stream, messages: Iterable[bytes], replies: Iterable[Message], timeouts: Timeouts
) -> None:
    """Send the messages, then read the replies."""
    try:
        for message in messages:
            stream.send((message,), Deadline.after(timeouts.request))
    except ConnectionLost as lost:
        # The host may have said why before it closed: that is the better error.
        try:
            for wanted in replies:
                _read_message(stream, wanted, Deadline.after(LAST_WORDS))
        except HostError:
            raise
        except TransportError:
            raise lost from None
        raise
    for wanted in replies:
        _read_message(stream, wanted, Deadline.after(timeouts.request))


def _read_message(stream: Stream, wanted: Message, deadline: Deadline) -> None:
    message = bytearray(handshake.SIZE)
    stream.recv_exact(memoryview(message), deadline)
    if handshake.message_type(message) == Message.ERROR:
        _, code, length = handshake.parse_error(message)
        text = bytearray(length)
        stream.recv_exact(memoryview(text), deadline)
        raise host_error(stream.peer, code, text.rstrip(b"\0").decode("utf-8", "replace"))
    handshake.expect(message, wanted)
