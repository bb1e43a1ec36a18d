"""The data port up to an open disk session: greeting, ticket dialogue, both TLS sessions, handshake.

What is accepted and sent is section 16 of our NFC specification.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass

from vdkit.errors import ConnectionLost, ProtocolError
from vdkit.net.deadline import Deadline
from vdkit.net.stream import SocketStream, Stream
from vdkit.net.tls import TlsStream
from vdkit.net.trust import sha256_thumbprint
from vdkit.sim.certificates import Certificate, context_of
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_outlet import Outlet
from vdkit.sim.ports import Grant, TicketOffice
from vdkit.wire.nfc import dialogue, handshake
from vdkit.wire.nfc.dialogue import Verb
from vdkit.wire.nfc.greeting import build_greeting
from vdkit.wire.nfc.handshake import Message, ServerHandshake
from vdkit.wire.nfc.limits import MAX_GREETING, MAX_LINE

_log = logging.getLogger(__name__)
#: Seconds for each step until the disk session stands.
STEP_TIMEOUT = 60.0
#: Lines of one dialogue.
MAX_COMMANDS = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """What stays the same for every connection of one server."""

    office: TicketOffice
    certificate: Certificate
    context: ssl.SSLContext
    host_version: int
    strict_records: bool


class Login:
    """One connection up to its disk session."""

    def __init__(self, raw: SocketStream, outlet: Outlet, settings: Settings, faults: NfcFaults) -> None:
        self._raw = raw
        self._outlet = outlet
        self._settings = settings
        self._faults = faults

    def run(self) -> tuple[Stream, Grant] | None:
        """The stream of the disk session and what the ticket allows; None if the client was turned away."""
        self._greet()
        first = TlsStream(self._raw, self._settings.context, server=True)
        first.handshake(self._step())
        self._outlet.stream = first
        admitted = self._converse(first)
        if admitted is None:
            return None
        grant, tls = admitted
        stream: Stream = first.abandon()
        if tls:
            stream = self._second_session()
        self._outlet.stream = stream
        if not self._shake_hands(stream):
            return None
        return stream, grant

    @staticmethod
    def _step() -> Deadline:
        return Deadline.after(STEP_TIMEOUT)

    def _greet(self) -> None:
        faults = self._faults
        if faults.greeting_silent:
            # Until the client gives up, or the server stops.
            self._raw.recv_into(memoryview(bytearray(1)), self._step())
            raise ConnectionLost(f"{self._raw.peer}: silent greeting")
        line = build_greeting(
            tls_disk=not faults.greeting_without_nfcssl, sha256=not faults.greeting_without_sha256
        )
        if faults.greeting_too_long:
            line = line[:-2] + b", x" * MAX_GREETING + b"\r\n"
        self._outlet.send((line,))

    # -- dialogue --------------------------------------------------------------------------------

    def _converse(self, stream: Stream) -> tuple[Grant, bool] | None:
        grant: Grant | None = None
        for _ in range(MAX_COMMANDS):
            line = stream.read_line(MAX_LINE, self._step(), "a command")
            command = dialogue.parse_command(line)
            _log.debug("%s: %s", self._raw.peer, command)
            match command.verb:
                case Verb.SESSION:
                    grant = self._settings.office.redeem(command.argument)
                    if self._faults.ticket_refused:
                        grant = None
                case Verb.BANNER:
                    refused = self._faults.banner_refused
                    self._outlet.send((dialogue.LOGIN_INCORRECT if refused else dialogue.BANNER_REPLY,))
                case Verb.THUMBPRINT:
                    valid = dialogue.valid_tag(command.argument)
                    self._outlet.send((self._announce() if valid else dialogue.INVALID_ARGUMENTS,))
                case Verb.PROXY:
                    tls = self._proxy(command.argument, grant)
                    if grant is not None and tls is not None:
                        return grant, tls
                case Verb.UNKNOWN:
                    self._outlet.send((dialogue.LOGIN_FIRST,))
        raise ProtocolError(f"{self._raw.peer}: more than {MAX_COMMANDS} commands without a PROXY")

    def _announce(self) -> bytes:
        faults = self._faults
        if faults.greeting_without_sha256:
            return dialogue.LOGIN_FIRST
        if faults.thumbprint_garbled:
            return b"200 not a thumbprint\r\n"
        der = self._settings.certificate.der
        return dialogue.thumbprint_reply(sha256_thumbprint(b"" if faults.wrong_announced_sha256 else der))

    def _proxy(self, service: str, grant: Grant | None) -> bool | None:
        """Answer PROXY; whether the disk session is in TLS, or None for a refusal."""
        faults = self._faults
        tls = dialogue.SERVICES.get(service)
        if tls is None or faults.proxy_refused or service in faults.unknown_services:
            self._outlet.send((dialogue.CANNOT_PROXY,))
            return None
        if grant is None:
            self._outlet.send((dialogue.LOGIN_INCORRECT,))
            return None
        self._outlet.send((dialogue.connect_line(tls=tls != faults.proxy_crossed),))
        return tls

    # -- disk session ----------------------------------------------------------------------------

    def _second_session(self) -> TlsStream:
        other = self._faults.second_certificate
        context = self._settings.context if other is None else context_of(other)
        stream = TlsStream(self._raw, context, server=True)
        stream.handshake(self._step())
        return stream

    def _shake_hands(self, stream: Stream) -> bool:
        state = ServerHandshake(
            host_version=self._settings.host_version, wait_for_version=self._faults.wait_for_version
        )
        while not state.done:
            message = self._read_message(stream)
            for reply in state.feed(message):
                if not self._reply(reply):
                    return False
            if handshake.message_type(message) == Message.NAME:
                self._read_names(stream, message)
        return True

    def _reply(self, reply: bytes) -> bool:
        kind = handshake.message_type(reply)
        if kind == self._faults.session_complete_at:
            self._outlet.send((handshake.build_session_complete(),))
            return False
        if kind == self._faults.classic_error_at:
            self._outlet.send((handshake.build_error(5, 5, self._faults.classic_error_text),))
            return False
        self._outlet.send((reply,))
        return True

    def _read_message(self, stream: Stream) -> bytearray:
        message = bytearray(handshake.SIZE)
        if not (self._settings.strict_records and isinstance(stream, TlsStream)):
            stream.recv_exact(memoryview(message), self._step())
            return message
        # Like a host: one message per TLS record. The names of message 54 may be in the same record.
        record = memoryview(bytearray(1 << 14))
        count = stream.recv_into(record, self._step())
        if count < handshake.SIZE:
            raise ProtocolError(f"{stream.peer}: a TLS record with {count} bytes instead of a message")
        message[:] = record[: handshake.SIZE]
        names = 0
        if handshake.message_type(message) == Message.NAME:
            names = sum(handshake.parse_name(message))
        if count not in (handshake.SIZE, handshake.SIZE + names):
            raise ProtocolError(f"{stream.peer}: two messages share a TLS record")
        self._names_read = count > handshake.SIZE
        return message

    _names_read = False

    def _read_names(self, stream: Stream, message: bytearray) -> None:
        if self._names_read:
            return
        names = bytearray(sum(handshake.parse_name(message)))
        stream.recv_exact(memoryview(names), self._step())
