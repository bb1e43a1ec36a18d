"""A defect of the data port's client that a review found."""

from __future__ import annotations

from collections.abc import ItemsView

from vdkit.transports.nfc import session as sessions
from vdkit.transports.nfc.operations import Operation
from vdkit.transports.nfc.target import Timeouts


def test_the_oldest_request_is_looked_up_while_nobody_else_can_send() -> None:
    """Two workers of a copy share a session: one waits for replies while the other sends."""
    session = sessions.Session(None, "host:902", "[ds] a.vmdk", window=8, timeouts=Timeouts())  # type: ignore[arg-type]

    class Watched(dict[int, Operation]):
        asked = 0

        def items(self) -> ItemsView[int, Operation]:  # type: ignore[override]
            self.asked += 1
            assert session._changed._is_owned()  # type: ignore[attr-defined]
            return super().items()

    watched = session._operations = Watched()
    session._patience()
    assert watched.asked == 1
