"""How a disk slows down and grows again, and which compression ``auto`` takes: with clocks of our own."""

from __future__ import annotations

import pytest

from nfctools import Office, opened, served, target
from vdkit.testing.relay import Relay
from vdkit.transports.nfc import Timeouts, open_nfc
from vdkit.transports.nfc.compressing import CRAWLING, SLOW, TELLING, AutoCompressing
from vdkit.transports.nfc.operations import Operation
from vdkit.transports.nfc.pace import ALL_ATTEMPTS, ATTEMPTS, FLOOR, GROW_AFTER, Pace
from vdkit.wire.nfc.codecs import Compression

KIB, MIB = 1 << 10, 1 << 20


class Asked:
    """Stands for refused requests of some cost."""

    def __new__(cls, *costs: int) -> list[Operation]:  # type: ignore[misc]
        from vdkit.transports.nfc.operations import WriteOperation

        return [WriteOperation(1, 0, memoryview(bytes(cost)), 0, 65536, seconds=1) for cost in costs]


def pace(size: int = MIB, *, adapt: bool = True) -> tuple[Pace, list[int], list[float]]:
    told: list[int] = []
    pauses: list[float] = []
    made = Pace(
        "host",
        size=size,
        in_flight=16 * MIB,
        told=told.append,
        adapt=adapt,
        sleep=pauses.append,
        jitter=lambda: 0.0,
    )
    return made, told, pauses


def test_each_refusal_halves_once() -> None:
    slow, told, pauses = pace()
    generation = slow.generation
    assert slow.try_again(Asked(MIB, MIB), 1, generation)
    # Another thread's request of the same time: a pause, no second halving.
    assert slow.try_again(Asked(MIB), 1, generation)
    assert (slow.size, slow.in_flight) == (512 * KIB, 8 * MIB)
    for failures in range(2, 12):
        slow.try_again(Asked(slow.size), failures, slow.generation)
    assert (slow.size, slow.in_flight) == (FLOOR, FLOOR)
    assert told[0] == 8 * MIB and told[-1] == FLOOR and told == sorted(told, reverse=True)
    # Half of 0.05 seconds, doubled: the jitter is 0 here.
    assert pauses[:4] == [0.025, 0.025, 0.05, 0.1]


def test_it_ends() -> None:
    slow, _, _ = pace()
    assert not slow.try_again(Asked(FLOOR), ATTEMPTS, 0)
    assert slow.try_again(Asked(MIB), ATTEMPTS, 0)
    assert not slow.try_again(Asked(MIB), ALL_ATTEMPTS, 0)
    off, _, pauses = pace(adapt=False)
    assert not off.try_again(Asked(MIB), 1, 0)
    assert not pauses and not off.reduced


def test_it_grows_back_slowly_and_not_beyond() -> None:
    slow, told, _ = pace(96 * KIB)
    slow.try_again(Asked(96 * KIB), 1, 0)
    assert slow.size == FLOOR
    slow.went_well(GROW_AFTER - 1)
    assert slow.reduced
    slow.went_well(1)
    assert (slow.size, slow.in_flight) == (96 * KIB, 16 * MIB)
    assert not slow.reduced
    slow.went_well(10 * GROW_AFTER)
    assert told == [8 * MIB, 16 * MIB]


# -- auto ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("far", "rate", "wanted"),
    [
        (False, 10 * SLOW, Compression.NONE),
        (False, SLOW - 1, Compression.SKIPZ),
        (False, CRAWLING - 1, Compression.ZLIB),
        (True, 10 * SLOW, Compression.SKIPZ),
        (True, CRAWLING + 1, Compression.SKIPZ),
        (True, CRAWLING - 1, Compression.ZLIB),
    ],
)
def test_the_rule(far: bool, rate: int, wanted: Compression) -> None:
    now = 0.0
    auto = AutoCompressing("host", far=far, clock=lambda: now)
    assert auto.code is (Compression.SKIPZ if far else Compression.NONE)
    for _ in range(100):
        # Two calls at once share the link.
        auto.begin(TELLING)
        auto.begin(TELLING)
        now += TELLING / rate
        auto.meter.wire += TELLING
        auto.end(TELLING)
        now += TELLING / rate
        auto.meter.wire += TELLING
        auto.end(TELLING)
        now += 100  # idle time says nothing
    assert auto.code is wanted


def test_what_was_saved_does_not_count_as_speed() -> None:
    now = 0.0
    auto = AutoCompressing("host", far=True, clock=lambda: now)
    for _ in range(64):
        auto.begin(TELLING)
        auto.meter.wire += TELLING // 16
        now += 0.05  # 20 MiB/s of the disk, 1.25 MiB/s on the wire
        auto.end(TELLING)
    assert auto.code is Compression.ZLIB


def test_small_reads_say_nothing() -> None:
    auto = AutoCompressing("host", far=False, clock=iter([]).__next__)
    for _ in range(1000):
        auto.begin(TELLING - 1)
        auto.end(TELLING - 1)
    assert auto.code is Compression.NONE


def test_a_far_host_is_asked_to_leave_zeroes_out() -> None:
    content = bytes(MIB) + b"x" * MIB
    with (
        served(Office(content)) as server,
        Relay("127.0.0.1", server.port, to_client=0.01) as relay,
        open_nfc(target(server, port=relay.port), compression="auto", timeouts=Timeouts()) as disk,
    ):
        assert disk.compression == "skipz"
        data = bytearray(len(content))
        disk.read_into(0, data)
        assert data == content
    with opened(Office(content), compression="fastlz") as disk:
        assert disk.compression == "fastlz"
