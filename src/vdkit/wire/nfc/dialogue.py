"""The ticket dialogue inside the first TLS session (NFC specification, section 5). Lines end CRLF."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from vdkit.errors import ProtocolError
from vdkit.wire.nfc.limits import MAX_LINE, MAX_TAG

BANNER = b"BANNER \r\n"
BANNER_REPLY = b"220 VMware Authentication Daemon Version 1.10\r\n"
CANNOT_PROXY = b"500 Cannot proxy\r\n"
LOGIN_FIRST = b"530 Please login with USER and PASS\r\n"
LOGIN_INCORRECT = b"530 Login incorrect\r\n"
INVALID_ARGUMENTS = b"501 Invalid arguments\r\n"

#: Every name that PROXY is known to take, and whether the disk session is in TLS.
SERVICES = {
    "nfc": False,
    "nfcssl": True,
    "vpxa-nfc": False,
    "vpxa-nfcssl": True,
    "ha-nfc": False,
    "ha-nfcssl": True,
}

_CONNECT = {False: "200 Connect ha-nfc", True: "200 Connect ha-nfcssl"}
_THUMBPRINT = re.compile(r"200 ([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}|[0-9A-Fa-f]{64})\Z")


class Verb(Enum):
    SESSION = "SESSION"
    BANNER = "BANNER"
    THUMBPRINT = "THUMBPRINT_SHA2"
    PROXY = "PROXY"
    UNKNOWN = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One line of a client. The argument of SESSION is a secret, so ``repr`` leaves the argument out."""

    verb: Verb
    argument: str

    def __repr__(self) -> str:
        return f"Command({self.verb.name})"


def session_line(ticket: str) -> bytes:
    return _line(f"SESSION {_token(ticket, 'the ticket')}")


def thumbprint_line(tag: str) -> bytes:
    if len(tag) > MAX_TAG:
        raise ProtocolError(f"the tag is longer than {MAX_TAG} characters")
    return _line(f"THUMBPRINT_SHA2 {_token(tag, 'the tag')}")


def proxy_line(service: str) -> bytes:
    return _line(f"PROXY {_token(service, 'the service')}")


def connect_line(*, tls: bool) -> bytes:
    return _line(_CONNECT[tls])


def thumbprint_reply(thumbprint: str) -> bytes:
    """``thumbprint``: SHA-256 as upper-case hexadecimal digits with colons."""
    return _line(f"200 {thumbprint}")


def proxy_service(service: str, *, tls: bool) -> str:
    """The PROXY name: the ticket's service, with ``ssl`` appended for a disk session in TLS."""
    base = service.removesuffix("ssl") or "nfc"
    return base + "ssl" if tls else base


def fallback_service(*, tls: bool) -> str:
    """What to say when the ticket's own service is refused or not known."""
    return "nfcssl" if tls else "nfc"


def parse_command(line: bytes) -> Command:
    """A client's line, as a server reads it. An unknown verb is not an error here: it has a reply."""
    text = _text(line, "a command")
    word, _, argument = text.partition(" ")
    argument = argument.strip()
    try:
        verb = Verb(word) if word else Verb.UNKNOWN
    except ValueError:
        verb = Verb.UNKNOWN
    return Command(verb, argument)


def valid_tag(tag: str) -> bool:
    """True for 1 to 64 printable characters; hosts answer :data:`INVALID_ARGUMENTS` to another."""
    return 0 < len(tag) <= MAX_TAG and all(" " < c <= "~" for c in tag)


def parse_banner(line: bytes) -> None:
    text = _text(line, "the reply to BANNER")
    if not text.startswith("220"):
        raise ProtocolError(f"the reply to BANNER was {text[:80]!r}")


def parse_thumbprint(line: bytes) -> str:
    """The announced SHA-256, 64 upper-case hexadecimal digits without colons."""
    text = _text(line, "the reply to THUMBPRINT_SHA2")
    match = _THUMBPRINT.match(text)
    if match is None:
        raise ProtocolError(f"the reply to THUMBPRINT_SHA2 was {text[:80]!r}")
    return match[1].replace(":", "").upper()


def parse_connect(line: bytes, *, tls: bool) -> None:
    """The reply to PROXY must be exactly the success line of what was asked for, not the crossed one."""
    text = _text(line, "the reply to PROXY")
    if text != _CONNECT[tls]:
        raise ProtocolError(f"the reply to PROXY was {text[:80]!r}, expected {_CONNECT[tls]!r}")


def reply_code(line: bytes) -> int | None:
    """The three digits that a reply begins with, or None."""
    return int(line[:3]) if len(line) >= 3 and line[:3].isdigit() else None


def _text(line: bytes, what: str) -> str:
    if len(line) > MAX_LINE:
        raise ProtocolError(f"{what} is longer than {MAX_LINE} bytes")
    try:
        return line.rstrip().decode("ascii")
    except UnicodeDecodeError:
        # Not chained: the line may hold a ticket, and the decoder's error quotes it.
        raise ProtocolError(f"{what} is not ASCII text") from None


def _token(text: str, what: str) -> str:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ProtocolError(f"{what} is not a single word of printable ASCII characters")
    return text


def _line(text: str) -> bytes:
    return text.encode("ascii") + b"\r\n"
