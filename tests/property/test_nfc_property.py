"""Whatever fields go in come out again; chunks in any cut and order make the request whole."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from vdkit.wire.nfc import codecs, records
from vdkit.wire.nfc.assembly import Assembly, split
from vdkit.wire.nfc.records import Direction, Io, MapRequest, OpenReply

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@given(st.builds(Io, U64, U32, U32, U64, U32, U32, U32, U32, U32), U32)
def test_io(io: Io, sequence: int) -> None:
    record = records.encode_io(sequence, io)
    assert records.parse_header(record) == (7, 44, sequence)
    assert records.decode_io(record[16:]) == io
    buffer = bytearray(60)
    records.pack_io_into(buffer, sequence, io)
    assert buffer == record


@given(st.builds(OpenReply, U64, U64, U32, U32, U64, U32, U32, U32, U32), U32)
def test_open_reply(reply: OpenReply, sequence: int) -> None:
    assert records.decode_open_reply(records.encode_open_reply(sequence, reply)[16:]) == reply


@given(st.builds(MapRequest, U64, U64, U64, U64), U32)
def test_map_request(request: MapRequest, sequence: int) -> None:
    assert records.decode_map(records.encode_map(sequence, request)[16:]) == request


@given(
    st.integers(1, 100_000), st.lists(st.integers(1, 99_999), max_size=20), st.randoms(use_true_random=False)
)
def test_any_cut_in_any_order_completes(total: int, cuts: list[int], dice: random.Random) -> None:
    borders = sorted({0, total, *(cut for cut in cuts if cut < total)})
    parts = [(a, b - a) for a, b in itertools.pairwise(borders)]
    dice.shuffle(parts)
    request = Assembly(Direction.READ, 512, total)
    for start, length in parts:
        assert not request.complete
        request.check(Io(0, 1, 0, 512, total, start, length, length))
        request.note(start, length)
    assert request.complete


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 10**6))
def test_split_covers_exactly(offset: int, length: int, size: int) -> None:
    position = offset
    for start, count in split(offset, length, size):
        assert start == position
        assert 0 < count <= size
        assert start // size == (start + count - 1) // size
        position += count
    assert position == offset + length


@given(
    st.lists(st.tuples(st.integers(1, 9000), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(list(codecs.Compression)),
)
def test_codecs(runs: list[tuple[int, bool]], code: codecs.Compression) -> None:
    data = b"".join(bytes(n) if zero else random.Random(n).randbytes(n) for n, zero in runs)
    used, wire = codecs.encode(code, memoryview(data))
    target = bytearray(len(data))
    codecs.decode_into(used, wire, memoryview(target))
    assert target == data
