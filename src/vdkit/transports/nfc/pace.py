"""How hard a disk pulls at a host that is short of memory: smaller requests, fewer in flight, and pauses.

One pace serves all threads of a disk. Each refusal halves both once, however many requests were refused
together, and after each :data:`GROW_AFTER` bytes that went well both are doubled until they are what they
were at first.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from vdkit.transports.nfc.operations import DataOperation, Operation

_log = logging.getLogger(__name__)
#: Bytes of the smallest request that is tried: what every host serves.
FLOOR: Final = 64 << 10
#: Bytes that must have gone well before more is asked for again.
GROW_AFTER: Final = 64 << 20
#: Refusals in a row, nothing answered between, of requests of the smallest size before the error is told.
ATTEMPTS: Final = 10
#: The same of requests of any size: others on the same disk may make them grow meanwhile.
ALL_ATTEMPTS: Final = 3 * ATTEMPTS
#: Seconds of the first pause, which doubles, and of the longest.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
#: Sizes are multiples of this, the largest sector.
_STEP: Final = 4096


class Pace:
    """``size`` of a request and ``in_flight``, both bytes; ``told`` hears of each new ``in_flight``.

    With ``adapt`` False nothing is changed and nothing tried again.
    """

    def __init__(
        self,
        name: str,
        *,
        size: int,
        in_flight: int,
        told: Callable[[int], None],
        adapt: bool = True,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._top = size, in_flight
        self._floor = min(FLOOR, size)
        self._told = told
        self._adapt, self._sleep, self._jitter = adapt, sleep, jitter
        self._lock = threading.Lock()
        self._well = 0
        self.size = size
        self.in_flight = in_flight
        #: Counts the reductions, so that requests sent before one do not cause another.
        self.generation = 0

    @property
    def reduced(self) -> bool:
        return (self.size, self.in_flight) != self._top

    def try_again(self, refused: Sequence[Operation], failures: int, generation: int) -> bool:
        """Slow down and pause after the ``failures``-th refusal in a row; False if it is not worth it."""
        if not self._adapt:
            return False
        costs = [one.cost for one in refused if isinstance(one, DataOperation)]
        smallest = max(costs, default=0) <= self._floor
        if (failures >= ATTEMPTS and smallest) or failures >= ALL_ATTEMPTS:
            return False
        self._slow_down(generation, max(costs, default=self.size))
        self.pause(failures)
        return True

    def pause(self, failures: int) -> None:
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1))
        self._sleep(seconds * (0.5 + self._jitter() / 2))

    def _slow_down(self, generation: int, refused: int) -> None:
        with self._lock:
            self._well = 0
            if generation != self.generation:
                return
            self.generation += 1
            smaller = max(self._floor, min(self.size, refused) // 2 // _STEP * _STEP)
            self._change(smaller, max(self._floor, self.in_flight // 2), "short of memory")

    def went_well(self, count: int) -> None:
        """``count`` bytes were answered at a reduced pace."""
        with self._lock:
            self._well += count
            if self._well >= GROW_AFTER and self.reduced:
                self._well = 0
                size, in_flight = self._top
                self._change(min(size, self.size * 2), min(in_flight, self.in_flight * 2), "well again")

    def _change(self, size: int, in_flight: int, why: str) -> None:
        if (size, in_flight) == (self.size, self.in_flight):
            return
        self.size, self.in_flight = size, in_flight
        self._told(in_flight)
        _log.info(
            "%s: the host is %s: requests of %d bytes, %d bytes in flight", self._name, why, size, in_flight
        )
