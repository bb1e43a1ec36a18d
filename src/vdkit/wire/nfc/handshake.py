"""The disk session's handshake: fixed messages of 264 bytes (NFC specification, sections 7 and 12.3).

Every message must travel in a write (and so in a TLS record) of its own: hosts read one message per record
and leave what follows it unread.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from vdkit.errors import ProtocolError
from vdkit.wire.nfc.limits import MAX_ERROR_TEXT, MAX_NAME, MAX_TAG, bounded

SIZE = 264
OPERATION = "nbdmode"
#: What our client says of itself in message 51: the pair that is known to be accepted by 7.0.3 and 8.0.
CLIENT_VERSION = (12, 1)
HOST_VERSION_7 = 9
HOST_VERSION_8 = 11

_U32 = struct.Struct("<I")
_U32X2 = struct.Struct("<II")
_U32X3 = struct.Struct("<III")


class Message(IntEnum):
    """Numbers at offset 0. The names are ours; the meanings of 33, 36 and 55 are only inferred."""

    SESSION_COMPLETE = 4
    ERROR = 20
    PROBE = 33
    PROBE_REPLY = 36
    TAG = 43
    VERSION = 51
    READY = 52
    NAME = 54
    FEATURES = 55


def build(kind: Message, *fields: int) -> bytes:
    """A message with u32 ``fields`` from offset 4, zero filled."""
    message = bytearray(SIZE)
    struct.pack_into(f"<I{len(fields)}I", message, 0, kind, *fields)
    return bytes(message)


def build_tag(tag: str) -> bytes:
    data = tag.encode("ascii")
    if not 0 < len(data) <= MAX_TAG:
        raise ProtocolError(f"the tag must have 1 to {MAX_TAG} characters")
    return (_U32.pack(Message.TAG) + data).ljust(SIZE, b"\0")


def build_version(version: int, second: int = 0) -> bytes:
    return build(Message.VERSION, version, second)


def build_name(name: str, operation: str = OPERATION) -> bytes:
    """Message 54 and the two names behind it, as one write."""
    first, second = name.encode("ascii"), operation.encode("ascii")
    return build(Message.NAME, len(first), len(second)) + first + second


def build_features() -> bytes:
    return build(Message.FEATURES, 3, 0)


def build_ready() -> bytes:
    return build(Message.READY)


def build_probe() -> bytes:
    return build(Message.PROBE)


def build_probe_reply() -> bytes:
    """Message 36 with the 1 at offset 16 that hosts put there."""
    return build(Message.PROBE_REPLY, 0, 0, 0, 1)


def build_session_complete() -> bytes:
    return build(Message.SESSION_COMPLETE)


def build_error(kind: int, code: int, text: str) -> bytes:
    data = text.encode("utf-8") + b"\0"
    return build(Message.ERROR, kind, code, len(data)) + data


def message_type(message: bytes | bytearray) -> int:
    """The number of a message, whether known or not."""
    if len(message) != SIZE:
        raise ProtocolError(f"a handshake message of {len(message)} bytes instead of {SIZE}")
    return int(_U32.unpack_from(message)[0])


def expect(message: bytes | bytearray, wanted: Message) -> None:
    """Refuse any other message than ``wanted``. Message 20 has text behind it: look for it first."""
    kind = message_type(message)
    if kind == wanted:
        return
    if kind == Message.SESSION_COMPLETE:
        raise ProtocolError(f"the host ended the session (message 4) where message {wanted} was expected")
    raise ProtocolError(f"message {kind} came where message {wanted} was expected")


def parse_tag(message: bytes | bytearray) -> str:
    expect(message, Message.TAG)
    data = bytes(message[4:]).rstrip(b"\0")
    if not 0 < len(data) <= MAX_TAG or not all(0x20 < c < 0x7F for c in data):
        raise ProtocolError(f"the tag in message 43 is not 1 to {MAX_TAG} printable characters")
    return data.decode("ascii")


def parse_version(message: bytes | bytearray) -> tuple[int, int]:
    expect(message, Message.VERSION)
    first, second = _U32X2.unpack_from(message, 4)
    return first, second


def parse_name(message: bytes | bytearray) -> tuple[int, int]:
    """Lengths of the two names that follow message 54."""
    expect(message, Message.NAME)
    first, second = _U32X2.unpack_from(message, 4)
    return bounded(first, MAX_NAME, "a client name"), bounded(second, MAX_NAME, "an operation name")


def parse_error(message: bytes | bytearray) -> tuple[int, int, int]:
    """Of message 20: error type, error code, and length of the text behind it (NUL included)."""
    expect(message, Message.ERROR)
    kind, code, length = _U32X3.unpack_from(message, 4)
    return kind, code, bounded(length, MAX_ERROR_TEXT, "an error text")


class ServerHandshake:
    """Order of messages at the host's end: feed each client message, send what comes back.

    ``wait_for_version`` sends 36 only once 51 has come, as one client believes hosts do; by default 36
    answers 33 at once, which serves both kinds of client.
    """

    _ORDER = (
        Message.TAG,
        Message.PROBE,
        Message.VERSION,
        Message.NAME,
        Message.FEATURES,
        Message.READY,
    )

    def __init__(self, *, host_version: int = HOST_VERSION_8, wait_for_version: bool = False) -> None:
        self._host_version = host_version
        self._wait = wait_for_version
        self._step = 0
        self.tag = ""

    @property
    def done(self) -> bool:
        return self._step == len(self._ORDER)

    def feed(self, message: bytes | bytearray) -> list[bytes]:
        """Replies to send, each in a write of its own. The names behind 54 are the caller's to read."""
        wanted = self._ORDER[self._step]
        expect(message, wanted)
        self._step += 1
        match wanted:
            case Message.TAG:
                self.tag = parse_tag(message)
                return []
            case Message.PROBE:
                return [] if self._wait else [build_probe_reply()]
            case Message.VERSION:
                version = build_version(self._host_version)
                return [build_probe_reply(), version] if self._wait else [version]
            case Message.READY:
                return [build_ready()]
            case _:
                return []
