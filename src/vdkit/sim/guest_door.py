"""The guest door of a simulated host: the running disk of a machine, over HTTPS, as a device.

A program outside the simulator plays the guest through it. Real hosts have no such door; the path and its
meaning are ours (``docs/reference/simulated-host.md``).
"""

from __future__ import annotations

from vdkit.block.device import BaseWritableDevice
from vdkit.net.https import HttpsFile
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust

#: Bytes of one request.
MAX_REQUEST = 1 << 20


class GuestDoor(BaseWritableDevice):
    """See the module. ``moref`` and ``key`` name the machine and its disk."""

    def __init__(
        self, host: str, port: int, moref: str, key: int, *, user: str, password: Secret, trust: Trust
    ) -> None:
        self._file = HttpsFile(host, port, f"/guest/{moref}/{key}", user=user, password=password, trust=trust)
        try:
            capacity = self._file.size()
        except BaseException:
            self._file.close()
            raise
        super().__init__(name=self._file.where, capacity=capacity, writable=True)

    def _read_into(self, offset: int, view: memoryview) -> None:
        for start in range(0, len(view), MAX_REQUEST):
            piece = view[start : start + MAX_REQUEST]
            piece[:] = self._file.read_range(offset + start, len(piece))

    def _write_from(self, offset: int, view: memoryview) -> None:
        for start in range(0, len(view), MAX_REQUEST):
            self._file.write_range(offset + start, view[start : start + MAX_REQUEST], self.capacity)

    def _flush(self) -> None:
        """A write has reached the simulated machine's disk when it is answered."""

    def _close(self) -> None:
        self._file.close()
