"""Replies of port 443 that are never longer than a limit, over connections that check pin or CA first.

With a pin, name, validity and chain of the certificate are not looked at (hosts name themselves
``localhost.localdomain``); the handshake's signatures are. With a CA file all of them are.
"""

from __future__ import annotations

import http.client
from typing import Final

from vdkit.errors import LimitExceeded
from vdkit.net import https

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


class VerifiedConnection(https.VerifiedConnection):
    """See the module."""

    response_class = BoundedReply
