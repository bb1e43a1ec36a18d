"""Manifests and maps: what is written is read back, and what an enemy wrote is refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backuptools import VM
from vdkit.backup import diskmap, manifest
from vdkit.backup.diskmap import BLOCK, GRAIN, DiskMap, WindowHasher, covering, window_size
from vdkit.backup.document import digest_of, read_object, write_object
from vdkit.backup.manifest import (
    Consistency,
    DiskRecord,
    FileRecord,
    Kind,
    Manifest,
    ParentRecord,
)
from vdkit.block.extent import RangeSet
from vdkit.block.memory import MemoryStore
from vdkit.errors import LimitExceeded, PointInvalid, UsageError, VixError

POINT = "20260131T120000Z-0badcafe"
PARENT = "20260130T120000Z-deadbeef"
MIB = 1 << 20


def sample() -> Manifest:
    disk = DiskRecord(
        key=2000,
        label="Hard disk 1",
        capacity=64 * MIB,
        kind=Kind.INCREMENTAL,
        reason="what changed",
        cid=0xFFFF0001,
        change_id="52 de c0/7",
        file=FileRecord(f"disk-2000.{POINT}.vmdk", 1000, "a" * 64),
        map=FileRecord(f"disk-2000.{POINT}.map.json", 100, "b" * 64),
        changed=MIB,
        read=2 * MIB,
        zero=GRAIN,
        seconds=1.25,
    )
    return Manifest(
        id=POINT,
        sequence=3,
        vm=VM,
        created=datetime(2026, 1, 31, 12, tzinfo=UTC),
        finished=datetime(2026, 1, 31, 12, 5, tzinfo=UTC),
        consistency=Consistency.QUIESCED,
        parent=ParentRecord(PARENT, "c" * 64),
        hardware={"guest": "debian12_64Guest", "nics": [{"mac": "00:50:56:00:00:01"}]},
        writer="vdkit test",
        disks=(disk,),
    )


def decode(data: bytes) -> Manifest:
    return manifest.decode(data, "m", point_id=POINT, vm_uuid=VM.uuid)[0]


def edited(change: Callable[[dict[str, object]], object]) -> bytes:
    """The sample with a change, agreeing with its own digest."""
    document = json.loads(manifest.encode(sample()))
    change(document)
    document["digest"] = digest_of(document)
    return json.dumps(document).encode()


def test_a_manifest_is_read_back_as_it_was() -> None:
    data = manifest.encode(sample())
    assert decode(data) == sample()
    assert b'"2026-01-31T12:00:00Z"' in data
    assert manifest.decode(data, "m", point_id=POINT, vm_uuid=VM.uuid)[1] == json.loads(data)["digest"]


def disk_of(document: dict[str, object]) -> dict[str, object]:
    disks = document["disks"]
    assert isinstance(disks, list)
    found: dict[str, object] = disks[0]
    return found


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda d: d.update(schema=2), "schema 2"),
        (lambda d: d.update(schema=True), "schema"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("vm"), "vm"),
        (lambda d: d.update(id=PARENT), "id"),
        (lambda d: d.update(sequence=0), "sequence"),
        (lambda d: d.update(kind="full"), "kind"),
        (lambda d: d.update(parent=None), "kind"),
        (lambda d: d.update(parent={"id": "../x", "digest": "c" * 64}), "id"),
        (lambda d: d.update(created="yesterday"), "created"),
        (lambda d: d.update(created="2026-02-30T00:00:00Z"), "created"),
        (lambda d: d.update(disks=[]), "disks"),
        (lambda d: d.update(disks=[disk_of(d), disk_of(d)]), "disks"),
        (lambda d: d.update(disks={}), "disks"),
        (lambda d: d["vm"].update(uuid="0" * 36), "uuid"),
        (lambda d: d["vm"].update(hardware=[]), "hardware"),
        (lambda d: disk_of(d).update(capacity=-1), "capacity"),
        (lambda d: disk_of(d).update(capacity=1 << 60), "capacity"),
        (lambda d: disk_of(d).update(changed_bytes=65 * MIB), "changed_bytes"),
        (lambda d: disk_of(d).update(cid="xyz"), "cid"),
        (lambda d: disk_of(d).update(seconds=-1), "seconds"),
        (lambda d: disk_of(d).update(seconds="1"), "seconds"),
        (lambda d: disk_of(d).update(label="\ud800"), "label"),
        (lambda d: disk_of(d).update(label="x" * 2000), "label"),
        (lambda d: disk_of(d)["file"].update(name="../../etc/passwd"), "name"),
        (lambda d: disk_of(d)["file"].update(name=f"disk-2001.{POINT}.vmdk"), "name"),
        (lambda d: disk_of(d)["file"].update(size=0), "size"),
        (lambda d: disk_of(d)["file"].update(sha256="A" * 64), "sha256"),
    ],
)
def test_a_wrong_member_is_named(change: Callable[[dict[str, object]], object], names: str) -> None:
    with pytest.raises(PointInvalid, match=names):
        decode(edited(change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"schema": 1, "schema": 1}',
        b'{"schema": NaN}',
        b'{"schema": 1e999}',
        b'{"schema": ' + b"9" * 5000 + b"}",
        b'{"schema": 1}',
        b" " * (manifest.MAX_MANIFEST + 1),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(PointInvalid):
        decode(data)
    with pytest.raises(PointInvalid):
        diskmap.decode(data, "map", point_id=POINT, key=1, capacity=MIB)


@pytest.mark.parametrize(
    "value", ["1e999", "[" * 970 + "]" * 970, "[" * 400 + "]" * 400, "9" * 4000, '"\\ud800"']
)
def test_facts_of_any_shape_give_an_error_of_ours(value: str) -> None:
    data = manifest.encode(sample()).replace(b'"debian12_64Guest"', value.encode())
    with pytest.raises(PointInvalid):
        decode(data)


def test_any_flipped_byte_is_noticed() -> None:
    data = manifest.encode(sample())
    noise = random.Random(1)
    for _ in range(300):
        flipped = bytearray(data)
        flipped[noise.randrange(len(data))] ^= 1 << noise.randrange(8)
        try:
            assert decode(bytes(flipped)) == sample()  # white space
        except VixError:
            continue


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(VixError):
        decode(data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_value_in_any_place_gives_a_manifest_or_an_error_of_ours(data: st.DataObject) -> None:
    document = json.loads(manifest.encode(sample()))
    places: list[tuple[dict[str, object], str]] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            places.extend((value, key) for key in value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    where, key = data.draw(st.sampled_from(places))
    where[key] = data.draw(json_values)
    document["digest"] = digest_of(document)
    try:
        decode(json.dumps(document).encode())
    except VixError:
        return


def test_objects_larger_than_allowed_are_not_read() -> None:
    store = MemoryStore()
    store.create("big", 1 << 40).close()
    with pytest.raises(LimitExceeded, match="big"):
        read_object(store, "big", 1000)
    write_object(store, "small", b"x")
    assert read_object(store, "small", 1) == b"x"


# -- maps ------------------------------------------------------------------------------------------


def make_map(content: bytes, ranges: RangeSet) -> DiskMap:
    hasher = WindowHasher(ranges, len(content))
    pieces = list(ranges.split(BLOCK))
    random.Random(0).shuffle(pieces)
    for offset, length in pieces:
        hasher.observe(offset, memoryview(content)[offset : offset + length])
    return hasher.finish()


def decode_map(data: bytes, capacity: int) -> DiskMap:
    return diskmap.decode(data, "map", point_id=POINT, key=2000, capacity=capacity)


def test_a_map_is_read_back_and_does_not_depend_on_the_order_of_reading() -> None:
    content = random.Random(1).randbytes(5 * MIB + 512)
    ranges = covering(RangeSet([(0, 10), (MIB - 1, 2 * MIB), (5 * MIB + 100, 1)]), len(content))
    made = make_map(content, ranges)
    data = diskmap.encode(made, point_id=POINT, key=2000)
    assert decode_map(data, len(content)) == made
    assert [r.total for r, _ in made.windows()] == [GRAIN * 2, MIB, MIB, 512]


def test_the_documented_recipe_gives_the_same_hashes() -> None:
    """As ``docs/reference/repository.md`` tells it, in plain Python and on its own."""
    from hashlib import sha256

    content = random.Random(2).randbytes(3 * MIB)
    made = json.loads(diskmap.encode(make_map(content, RangeSet([(0, 3 * MIB)])), point_id=POINT, key=2000))
    digests: dict[int, list[bytes]] = {}
    for offset, length in made["ranges"]:
        end = offset + length
        while offset < end:
            stop = min(end, (offset // made["block"] + 1) * made["block"])
            digests.setdefault(offset // made["window"], []).append(sha256(content[offset:stop]).digest())
            offset = stop
    assert [sha256(b"".join(digests[w])).hexdigest() for w in sorted(digests)] == made["hashes"]


def test_pieces_that_never_came_are_noticed() -> None:
    hasher = WindowHasher(RangeSet([(0, 2 * MIB)]), 2 * MIB)
    hasher.observe(0, memoryview(bytes(MIB)))
    with pytest.raises(UsageError, match="not read in full"):
        hasher.finish()


def test_maps_of_huge_and_scattered_disks_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = manifest.MAX_CAPACITY
    assert largest // window_size(largest) == diskmap.MAX_WINDOWS
    assert window_size(64 << 30) == BLOCK
    monkeypatch.setattr(diskmap, "MAX_RANGES", 50)
    scattered = RangeSet((i * 3 * GRAIN, 1) for i in range(100))
    bounded = covering(scattered, 1 << 30)
    assert len(bounded) <= 50
    assert bounded | scattered == bounded


def test_the_largest_map_is_one_that_is_read() -> None:
    biggest = manifest.MAX_CAPACITY
    range_text = len(f"[{biggest},{biggest}],")
    assert diskmap.MAX_RANGES * range_text + diskmap.MAX_WINDOWS * 67 + 1000 <= diskmap.MAX_MAP


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"schema": 2}, "schema"),
        ({"point": PARENT}, "point"),
        ({"key": 2001}, "key"),
        ({"capacity": MIB}, "capacity"),
        ({"window": 2 * MIB}, "window"),
        ({"ranges": [[0, GRAIN], [GRAIN, GRAIN]]}, "ranges"),
        ({"ranges": [[GRAIN * 4, GRAIN], [0, GRAIN]]}, "ranges"),
        ({"ranges": [[0, 100]]}, "ranges"),
        ({"ranges": [[1, GRAIN]]}, "ranges"),
        ({"ranges": [[0, 1 << 61]]}, "ranges"),
        ({"ranges": [[-GRAIN, GRAIN]]}, "ranges"),
        ({"ranges": [[0.0, GRAIN]]}, "ranges"),
        ({"ranges": [[0]]}, "ranges"),
        ({"ranges": [0]}, "ranges"),
        ({"hashes": []}, "hashes"),
        ({"hashes": ["0" * 64] * 3}, "hashes"),
        ({"hashes": ["x" * 64]}, "hashes"),
        ({"hashes": [1]}, "hashes"),
        ({"more": 1}, "more"),
    ],
)
def test_a_wrong_map_is_refused(change: dict[str, object], names: str) -> None:
    content = bytes(2 * MIB)
    data = diskmap.encode(make_map(content, RangeSet([(0, 2 * MIB)])), point_id=POINT, key=2000)
    document = json.loads(data) | change
    with pytest.raises(PointInvalid, match=names):
        decode_map(json.dumps(document).encode(), len(content))
