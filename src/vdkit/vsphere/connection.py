"""An HTTPS connection to port 443 that checks pin or CA before the first byte of a request.

With a pin, name, validity and chain of the certificate are not looked at (hosts name themselves
``localhost.localdomain``); the handshake's signatures are. With a CA file all of them are.
"""

from __future__ import annotations

import http.client
import ssl
from typing import Final

from vdkit.errors import LimitExceeded
from vdkit.net.trust import Trust

#: Bytes of one reply; an inventory of ten thousand machines is read in pages far below this.
MAX_REPLY: Final = 256 << 20


class BoundedReply(http.client.HTTPResponse):
    """A reply that is never read past :data:`MAX_REPLY`."""

    _seen = 0

    def read(self, amt: int | None = None) -> bytes:
        data = super().read(MAX_REPLY + 1 if amt is None else amt)
        self._seen += len(data)
        if self._seen > MAX_REPLY:
            self.close()
            raise LimitExceeded(f"the host's answer is longer than {MAX_REPLY} bytes")
        return data


class VerifiedConnection(http.client.HTTPSConnection):
    """See the module. ``timeout`` is in seconds, for connecting and for every read and write."""

    response_class = BoundedReply

    def __init__(self, host: str, port: int, *, trust: Trust, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout, context=trust.context())
        self._trust = trust

    def connect(self) -> None:
        """Connect and shake hands; raises TrustError, with the connection closed, if the pin differs."""
        super().connect()
        try:
            leaf = self.sock.getpeercert(binary_form=True) if isinstance(self.sock, ssl.SSLSocket) else None
            self._trust.check(leaf, f"{bracketed(self.host)}:{self.port}")
        except BaseException:
            self.close()
            raise


def bracketed(host: str) -> str:
    """``host`` as it is written before ``:port``."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
