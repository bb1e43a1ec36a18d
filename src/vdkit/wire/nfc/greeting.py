"""The greeting: one line in clear that the server sends first (NFC specification, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from vdkit.errors import ProtocolError, TooManyConnections
from vdkit.wire.nfc.limits import MAX_GREETING

TLS_DISK = "NFCSSL supported"
SHA256 = "SHA256 supported"
_VERSION = "VMware Authentication Daemon Version 1.10"
_ITEMS = (
    "SSL Required",
    "ServerDaemonProtocol:SOAP",
    "MKSDisplayProtocol:VNC ",
    "VMXARGS supported",
)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says of itself. ``version`` is never interpreted: only ``capabilities`` decide."""

    version: str
    capabilities: frozenset[str]

    @property
    def tls_disk(self) -> bool:
        """True if the disk session may be in TLS (mode ``nbdssl``)."""
        return TLS_DISK in self.capabilities

    @property
    def sha256(self) -> bool:
        """True if THUMBPRINT_SHA2 is understood."""
        return SHA256 in self.capabilities


def parse_greeting(line: bytes) -> Greeting:
    """``line`` up to and including its LF."""
    if len(line) > MAX_GREETING:
        raise ProtocolError(f"the greeting is longer than {MAX_GREETING} bytes")
    try:
        text = line.rstrip(b"\r\n").decode("ascii")
    except UnicodeDecodeError as error:
        raise ProtocolError("the greeting is not ASCII text") from error
    if text[:3].isdigit() and text.startswith("4"):
        # The class of passing refusals in protocols whose replies begin with three digits.
        raise TooManyConnections(
            f"the host takes no connection now: {text[:60]!r}",
            remedy="close other disks of this host, or open fewer at once",
        )
    if not text.startswith("220 "):
        raise ProtocolError(f"the greeting does not begin with 220: {text[:60]!r}")
    version, _, items = text[4:].partition(": ")
    # An item may carry a qualifier after a slash, as in "NFCSSL supported/t".
    names = (item.partition("/")[0].strip() for item in items.split(","))
    return Greeting(version, frozenset(name for name in names if name))


def build_greeting(*, tls_disk: bool = True, sha256: bool = True) -> bytes:
    """The line of an ESXi 8 host; without ``sha256`` that of 6.7 and early 7.0."""
    items = list(_ITEMS)
    if tls_disk:
        items.append(TLS_DISK + "/t")
    if sha256:
        items.append(SHA256)
    return f"220 {_VERSION}: {', '.join(items)}\r\n".encode("ascii")
