"""The books of a data port are right whatever comes and goes, and never above their limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vdkit.sim.nfc_ledger import Ledger, Limits

LIMIT = 1000
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, LIMIT + 10)),
        st.tuples(st.just("give"), st.integers(0, 50)),
        st.tuples(st.just("connect"), st.just(0)),
        st.tuples(st.just("disconnect"), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_books_are_right(steps: list[tuple[str, int]]) -> None:
    ledger = Ledger(Limits(memory=LIMIT, connections=3))
    held: list[int] = []
    refused = connected = turned_away = peak = 0
    for what, number in steps:
        match what:
            case "take":
                fits = sum(held) + number <= LIMIT
                assert ledger.fits(number) is fits
                assert ledger.take(number) is fits
                held += [number] if fits else []
                refused += not fits
            case "give":
                if held:
                    ledger.give(held.pop(number % len(held)))
            case "connect":
                room = connected < 3
                assert ledger.connect() is room
                connected += room
                turned_away += not room
            case "disconnect":
                if connected:
                    ledger.disconnect()
                    connected -= 1
        peak = max(peak, sum(held))
        assert (ledger.memory, ledger.memory_peak, ledger.memory_refused) == (sum(held), peak, refused)
        assert (ledger.connections, ledger.connections_refused) == (connected, turned_away)
    assert ledger.connections_peak <= 3
