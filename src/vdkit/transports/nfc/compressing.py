"""Which compression to ask for: the one that was chosen, or what suits the link (``auto``).

The rule of ``auto``. A host that is near is asked for plain data, a far one for skipz: leaving zeroes out
costs neither side anything to speak of. Once the first requests have shown what really comes over the wire, a
near link below :data:`SLOW` bytes a second gets skipz, and any link below :data:`CRAWLING` zlib: about the
rate at which the time that a host takes for zlib is won back. fastlz is never taken: it is slow in Python.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from vdkit.transports.nfc.operations import Meter
from vdkit.wire.nfc.codecs import Compression

_log = logging.getLogger(__name__)
#: Bytes a second on the wire: a network of 100 Mbit/s; and a link that is slower than a host compresses.
SLOW: Final = 12 << 20
CRAWLING: Final = 2 << 20
#: Enough is known after so many seconds of reading, or bytes on the wire.
MEASURED_SECONDS: Final = 1.0
MEASURED_BYTES: Final = 32 << 20
#: Bytes of the smallest read that tells of the link: smaller ones tell how far it is, not how wide.
TELLING: Final = 1 << 20


class Compressing:
    """``code`` is what requests ask for now; ``meter`` counts what came."""

    def __init__(self, code: Compression) -> None:
        self.code = code
        self.meter = Meter()

    def begin(self, count: int) -> None:
        """A call begins to read ``count`` bytes of the disk."""

    def end(self, count: int) -> None:
        """It has ended, well or not."""


class AutoCompressing(Compressing):
    """Decides once; until then it watches. Any number of calls may overlap."""

    def __init__(self, name: str, *, far: bool, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(Compression.SKIPZ if far else Compression.NONE)
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._settled = False
        self._active = self._wire = self._seen = 0
        self._since = self._busy = 0.0

    def begin(self, count: int) -> None:
        if self._settled or count < TELLING:
            return
        with self._lock:
            if self._active == 0:
                self._since, self._seen = self._clock(), self.meter.wire
            self._active += 1

    def end(self, count: int) -> None:
        if self._settled or count < TELLING:
            return
        with self._lock:
            now, wire = self._clock(), self.meter.wire
            self._busy += now - self._since
            self._wire += wire - self._seen
            self._since, self._seen = now, wire
            self._active -= 1
            if self._busy >= MEASURED_SECONDS or self._wire >= MEASURED_BYTES:
                self._settle(self._wire / max(self._busy, 1e-6))

    def _settle(self, rate: float) -> None:
        self._settled = True
        if rate < CRAWLING:
            self.code = Compression.ZLIB
        elif rate < SLOW:
            self.code = Compression.SKIPZ
        _log.info(
            "%s: %.1f MiB/s come over the wire: compression %s",
            self._name,
            rate / (1 << 20),
            self.code.name.lower(),
        )
