"""What our formatter wrote is read as its manifest says: states, layouts, members, tables, store."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import cache

import pytest

from vdkit.block.extent import ExtentKind
from vdkit.block.store import HostStore, Store
from vdkit.errors import NotFound, NotSupported, OutsideStore, UnsupportedVersion
from vdkit.testing.stores import BAD_NAMES
from vdkit.testing.vmfsimage import VmfsImage
from vdkit.testing.vmfsmanifest import STALE, Run
from vdkit.vmfs import FileType, VmfsStore, Volume, check_file, open_volume
from vdkit.vmfs.descriptor import Layout
from vmfsfixtures import MIB, Fixture, VmfsOptions, copy_of, read

OPTIONS = {
    "5": VmfsOptions(5),
    "6": VmfsOptions(6),
    "5-span-gpt": VmfsOptions(5, members=(1, 2, 1), table="gpt"),
    "6-span-gpt4k": VmfsOptions(6, members=(2, 1, 2), table="gpt4k"),
    "5-mbr-not-dense": VmfsOptions(5, table="mbr", dense=False, block_size=MIB // 2),
    "5-indirect": VmfsOptions(5, indirect=True),
    "6-indirect": VmfsOptions(6, indirect=True),
    "5-bare": VmfsOptions(5, managed=False),
    "6-bare": VmfsOptions(6, managed=False, table="gpt"),
    "5-large-blocks": VmfsOptions(5, block_size=4 * MIB, dense=False),
}


def fill(image: VmfsImage) -> None:
    """Every kind of file."""
    block, sub = image.options.block_size, 32768 if not image.options.dense else 8192
    sub = 65536 if image.options.six else sub
    image.folder("vm")
    image.folder("vm/deep")
    image.small("empty", b"")
    image.small("resident", b"r" * (3584 if image.options.six else 1024))
    image.small("sub", b"s" * 5000)
    image.small("subs", random.Random(1).randbytes(2 * sub + 100), layout=2)
    image.disk("vm/mixed-flat.vmdk", 7 * block + 1536, "dzhcddzd")
    image.disk("vm/shuffled", 12 * block, "d" * 12, order="shuffled")
    image.disk("vm/apart", 5 * block, "d" * 5, order="apart")
    image.disk("vm/hollow", 100 << 30, {})
    image.disk("vm/two-levels", 42 << 40, {0: "d", (117 << 30) // block: "d", ((42 << 40) // block) - 1: "z"})
    image.disk("vm/one-level", 600 * MIB, {1: "d", 599 * MIB // block: "d"})
    image.disk("vm/forced", 3 * block + 1, "dhdd", levels=1)
    image.symlink("link", "vm/mixed-flat.vmdk")
    image.rdm("rdm.vmdk", 1 << 40)
    for i in range(90):
        image.small(f"vm/deep/file{i}", b"File %d" % i)
    image.small("vm/deep/f\u00fcnf \u96ea.vmx", b"u")


@cache
def made(name: str) -> Fixture:
    """One for all tests, which do not change it."""
    return Fixture(OPTIONS[name], fill)


@pytest.fixture(params=sorted(OPTIONS))
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return made(request.param)


def found_runs(volume: Volume, path: str) -> list[Run]:
    descriptor = volume.resolve(path)
    return [
        Run(run.offset, run.length, run.state.value, run.volume_offset, run.shared)
        for run in volume.blocks(descriptor, path).runs(0, descriptor.length)
    ]


def test_everything_is_as_the_manifest_says(fixture: Fixture) -> None:
    with fixture.open() as volume:
        assert volume.label == fixture.options.label
        walked = {path: d for path, d in volume.walk() if d.type is not FileType.SYSTEM}
        assert sorted(walked) == sorted(fixture.manifest.files)
        for path, expected in fixture.manifest.files.items():
            descriptor = walked[path]
            assert descriptor.type == expected.type
            if descriptor.type not in (FileType.FILE, FileType.SYMLINK):
                continue
            assert descriptor.length == expected.length
            checked = check_file(volume, descriptor, path)
            assert checked.problems == ()
            with volume.file(descriptor, path) as device:
                for offset, data in expected.pieces():
                    assert read(device, offset, len(data)) == data, (path, offset)
            if expected.block_size:
                assert found_runs(volume, path) == expected.runs()
                assert checked.runs == len(expected.runs())


def test_a_map_leads_to_the_content_on_the_luns(fixture: Fixture) -> None:
    """What is told of a file as LUN and offset are its bytes, read from the LUN alone."""
    luns = {device.name: device for device in fixture.image.devices}
    with fixture.open() as volume:
        for path in ("vm/mixed-flat.vmdk", "vm/shuffled", "vm/one-level"):
            expected = fixture.manifest.files[path]
            for run in found_runs(volume, path):
                if run.volume_offset is None:
                    continue
                data = b"".join(
                    read(luns[lun], offset, length)
                    for lun, offset, length in volume.device.places(run.volume_offset, run.length)
                )
                if run.state == "data":
                    assert data == expected.read(run.offset, run.length)
                else:
                    assert data == STALE * run.length  # somebody's old data, which no read may show


def test_blocks_to_be_zeroed_read_as_zeroes_whatever_lies_below(fixture: Fixture) -> None:
    block = fixture.options.block_size
    with fixture.open() as volume, VmfsStore(volume).open("vm/mixed-flat.vmdk") as device:
        assert read(device, block, 2 * block) == bytes(2 * block)
        assert read(device, 2 * block - 1, 2) == bytes(2)
        extents = [(e.offset // block, e.kind) for e in device.extents()]
        assert extents == [
            (0, ExtentKind.DATA),
            (1, ExtentKind.ZERO),
            (3, ExtentKind.DATA),
            (6, ExtentKind.ZERO),
            (7, ExtentKind.DATA),
        ]
        assert device.capacity == 7 * block + 1536


@pytest.mark.parametrize(
    ("mask", "state"), [(0xFF, "zero"), (0x01, "zero"), (0x81, "zero"), (0x02, "partial"), (0xFE, "partial")]
)
def test_masks_of_blocks_to_be_zeroed(mask: int, state: str) -> None:
    """Only where one bit stands for a whole block is that bit enough."""
    fixture = Fixture(VmfsOptions(6, members=(1,)), lambda image: image.disk("f", 3 * MIB, "dzd", mask=mask))
    with fixture.open() as volume, VmfsStore(volume).open("f") as device:
        assert [run.state for run in found_runs(volume, "f")] == ["data", state, "data"]
        assert read(device, 0, MIB) == fixture.manifest.files["f"].read(0, MIB)
        if state == "zero":
            assert read(device, MIB, MIB) == bytes(MIB)
            return
        with pytest.raises(
            NotSupported, match=r"at offset 1048576 .* only a host can tell.*through the host"
        ):
            read(device, 0, 3 * MIB)


def test_bits_for_parts_of_a_block_are_never_taken_for_the_whole() -> None:
    """The granularity of a file is half a block: bit 0 alone leaves the other half unknown."""
    fixture = Fixture(VmfsOptions(6, members=(1,)), lambda image: image.disk("f", MIB, "z", mask=1))
    fixture.field("f", 0x6C, "I", 19)
    with fixture.open() as volume:
        assert [run.state for run in found_runs(volume, "f")] == ["partial"]


# -- large blocks --------------------------------------------------------------------------------


def large(image: VmfsImage) -> None:
    image.disk("f", 700 * MIB, {0: "d", 300: "d", 301: "z", 511: "d", 512: "d", 699: "d"}, large=(0,))
    image.disk("once", 512 * MIB, {0: "d"}, large=(0,), large_once=True)


@pytest.fixture(scope="module")
def with_large() -> Fixture:
    return Fixture(VmfsOptions(6, members=(3, 4)), large)


def test_large_blocks(with_large: Fixture) -> None:
    expected = with_large.manifest.files["f"]
    with with_large.open() as volume, VmfsStore(volume).open("f") as device:
        assert found_runs(volume, "f") == expected.runs()
        assert found_runs(volume, "f")[0].volume_offset is not None
        for index in (0, 1, 300, 301, 511, 512, 600, 699):
            assert read(device, index * MIB, MIB) == expected.read(index * MIB, MIB)
        assert read(device, 511 * MIB + 5, 2 * MIB) == expected.read(511 * MIB + 5, 2 * MIB)


def test_a_large_block_that_only_its_first_slot_names_is_not_guessed_at(with_large: Fixture) -> None:
    with with_large.open() as volume, VmfsStore(volume).open("once") as device:
        assert read(device, 0, MIB) == with_large.manifest.files["once"].read(0, MIB)
        with pytest.raises(UnsupportedVersion, match="block 1 has no address, but the large block"):
            read(device, MIB, 512)
        with pytest.raises(UnsupportedVersion, match="through the host"):
            found_runs(volume, "once")


def test_a_file_in_blocks_of_512_mib() -> None:
    """Not known to exist; one slot a large block would be its only sense."""
    fixture = Fixture(
        VmfsOptions(6, members=(4,)), lambda image: image.disk("f", 512 * MIB, {5: "d"}, large=(0,))
    )
    fixture.field("f", 0x1C, "Q", 512 * MIB)
    fixture.field("f", 0x14, "Q", 1024 * MIB)
    lfb = fixture.manifest.files["f"].blocks[0].volume_offset
    fixture.field("f", 0x44, "I", 1)
    fixture.pointer("f", 0, 7 | lfb // (512 * MIB) << 15)
    fixture.pointer("f", 1, 0)
    with fixture.open() as volume, VmfsStore(volume).open("f") as device:
        assert [(run.length, run.state) for run in found_runs(volume, "f")] == [
            (512 * MIB, "data"),
            (512 * MIB, "hole"),
        ]
        assert read(device, 5 * MIB, MIB) == fixture.manifest.files["f"].read(5 * MIB, MIB)


def test_many_slots_at_once_and_one_by_one_agree(with_large: Fixture) -> None:
    """The same map, asked for in pieces too small for the fast way."""
    with with_large.open() as volume:
        descriptor = volume.resolve("f")
        blocks = volume.blocks(descriptor, "f")
        whole = list(blocks.runs(0, descriptor.length))
        pieces = [run for at in range(0, descriptor.length, 3 * MIB) for run in blocks.runs(at, 3 * MIB)]
        for run in whole:
            inside = [p for p in pieces if run.offset <= p.offset < run.offset + run.length]
            assert sum(p.length for p in inside) == run.length
            for piece in inside:
                assert (piece.state, piece.shared) == (run.state, run.shared)
                if run.volume_offset is not None:
                    assert piece.volume_offset == run.volume_offset + piece.offset - run.offset


# -- directories ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [5, 6])
def test_directories_of_hundreds_and_names_that_share_a_bucket(version: int) -> None:
    collided = ["ajVm", "alBt", "am7G"]  # one bucket of VMFS-6, found on a real volume

    def build(image: VmfsImage) -> None:
        image.folder("big")
        for i in range(600):
            image.small(f"big/a file with number {i:04}", b"")
        image.folder("few")
        for name in collided:
            image.small(f"few/{name}", name.encode())
        path = ""
        for i in range(12):
            path = f"{path}/d{i}".lstrip("/")
            image.folder(path)

    fixture = Fixture(VmfsOptions(version, members=(1,)), build)  # type: ignore[arg-type]
    with fixture.open() as volume:
        store = VmfsStore(volume)
        assert store.list("big") == [f"a file with number {i:04}" for i in range(600)]
        assert store.list("few") == collided
        assert [read(store.open(f"few/{name}"), 0, 4) for name in collided] == [n.encode() for n in collided]
        assert store.exists("/".join(f"d{i}" for i in range(12)))


# -- links, threads ------------------------------------------------------------------------------


def test_links_are_followed_only_inside() -> None:
    def build(image: VmfsImage) -> None:
        image.folder("vm")
        image.small("vm/x", b"x")
        image.symlink("good", "vm/./x")
        image.symlink("vm/up", "../vm/x")
        image.symlink("folder", "vm")
        image.symlink("out", "../../etc/passwd")
        image.symlink("absolute", "/etc/passwd")
        image.symlink("own", "/vmfs/volumes/fixture/vm/x")
        image.symlink("loop", "loop")

    fixture = Fixture(VmfsOptions(6, members=(1,)), build)
    with fixture.open() as volume:
        for path in ("good", "vm/up", "folder/x", "own"):
            assert volume.file(volume.resolve(path, follow=True), path).capacity == 1
        for path in ("out", "absolute", "loop"):
            with pytest.raises(OutsideStore, match=f"{path}.*link"):
                target = volume.resolve(path, follow=True)
                raise AssertionError(f"{path} leads to {target}")
        assert volume.resolve("loop").type is FileType.SYMLINK
        with pytest.raises(OutsideStore, match="symbolic link"):
            VmfsStore(volume).open("folder/x")


def test_many_threads_read_at_once(fixture: Fixture) -> None:
    expected = fixture.manifest.files["vm/shuffled"]
    whole = expected.read(0, expected.length)
    wrong: list[int] = []
    with fixture.open() as volume, VmfsStore(volume).open("vm/shuffled") as device:

        def work(seed: int) -> None:
            chosen = random.Random(seed)
            for _ in range(12):
                start = chosen.randrange(expected.length)
                length = chosen.randrange(1, 300_000)
                end = min(expected.length, start + length)
                if read(device, start, end - start) != whole[start:end]:
                    wrong.append(start)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong and not any(thread.is_alive() for thread in threads)


# -- the store -----------------------------------------------------------------------------------


def test_the_reading_half_of_the_rules_of_stores(fixture: Fixture) -> None:
    with fixture.open() as volume:
        store = VmfsStore(volume)
        assert isinstance(store, Store) and isinstance(store, HostStore)
        with store.open("sub") as device:
            assert not device.writable and device.alignment == 1
            assert store.name in device.name and "sub" in device.name
        inner = store.substore("vm")
        assert inner.exists("deep") and inner.exists("deep/file3") and not inner.exists("resident")
        assert inner.list()[:3] == ["apart", "deep/", "forced"]
        assert inner.substore("deep").list() == store.list("vm/deep")
        assert store.name in inner.name
        calls: list[Callable[[str], object]] = [
            store.open, store.exists, store.substore, inner.open, inner.exists, inner.substore
        ]  # fmt: skip
        for name in BAD_NAMES:
            for call in (*calls, *([store.list] if name else [])):
                with pytest.raises(OutsideStore):
                    call(name)
        for missing in (lambda: store.open("no"), lambda: store.list("no"), lambda: store.substore("no"),
                        lambda: store.open("no/a"), lambda: store.open("sub/a")):  # fmt: skip
            with pytest.raises(NotFound):
                missing()
        with pytest.raises(OutsideStore):
            store.open("vm")


# -- members -------------------------------------------------------------------------------------


def test_a_file_over_the_border_of_two_luns() -> None:
    fixture = Fixture(
        VmfsOptions(6, members=(1, 1, 1)),
        lambda image: image.disk("f", 500 * MIB, dict.fromkeys(range(200, 240), "d")),
    )
    first = fixture.manifest.files["f"].blocks[0].volume_offset

    def build(image: VmfsImage) -> None:
        image.disk("before", 300 * MIB, dict.fromkeys(range((256 * MIB - first) // MIB - 3), "D"))
        image.disk("f", 6 * MIB, "dddddd")

    fixture = Fixture(VmfsOptions(6, members=(1, 1, 1)), build)
    with fixture.open() as volume:
        (run,) = found_runs(volume, "f")
        assert run.volume_offset is not None
        places = list(volume.device.places(run.volume_offset, run.length))
        assert [lun for lun, _, _ in places] == ["lun0", "lun1"]
        with VmfsStore(volume).open("f") as device:
            assert read(device, 0, 6 * MIB) == fixture.manifest.files["f"].read(0, 6 * MIB)
            at = 256 * MIB - run.volume_offset
            assert read(device, at - 1, 2) == fixture.manifest.files["f"].read(at - 1, 2)


def test_layouts(fixture: Fixture) -> None:
    with fixture.open() as volume:
        layouts = {
            "resident": Layout.RESIDENT, "sub": Layout.SUB_BLOCKS, "subs": Layout.SUB_BLOCKS,
            "vm/two-levels": Layout.TWO_LEVELS, "vm/one-level": Layout.ONE_LEVEL,
            "vm/forced": Layout.ONE_LEVEL,
            "vm/apart": Layout.BLOCKS, "rdm.vmdk": Layout.NONE,
        }  # fmt: skip
        if fixture.options.block_size == 4 * MIB:
            layouts["vm/one-level"] = Layout.BLOCKS
        assert {path: volume.resolve(path).layout for path in layouts} == layouts
        with pytest.raises(NotSupported, match="raw device mapping"):
            VmfsStore(volume).open("rdm.vmdk")


@pytest.mark.parametrize("name", ["5-span-gpt", "6-span-gpt4k"])
def test_members_in_any_order_and_by_two_paths(name: str) -> None:
    fixture = made(name)
    devices = [copy_of(device) for device in fixture.image.devices]
    twice = copy_of(devices[1])
    with open_volume([devices[2], twice, devices[0], devices[1]]) as volume:
        assert volume.resolve("vm/deep/file7").length == 6
    assert all(device.closed for device in (*devices, twice))


def test_the_end_of_a_map_and_of_a_file(fixture: Fixture) -> None:
    """Any range of the map is covered exactly, in order; nothing is past the end."""
    with fixture.open() as volume:
        descriptor = volume.resolve("vm/mixed-flat.vmdk")
        blocks = volume.blocks(descriptor, "f")
        block = fixture.options.block_size
        for offset, length in ((0, 1), (block - 1, 2), (3 * block + 7, 2 * block), (7 * block, 1536)):
            position = offset
            for run in blocks.runs(offset, length):
                assert run.offset == position and run.length > 0
                position += run.length
            assert position == offset + length
        assert list(blocks.runs(descriptor.length, 1)) == []
        with VmfsStore(volume).open("empty") as device:
            assert device.capacity == 0 and list(device.extents()) == []
