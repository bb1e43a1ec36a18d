"""The commands on local disks: what they print, what they change, and how each of them refuses."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from clitools import Vdkit
from vdkit.cli.diskoptions import parse_size
from vdkit.cli.main import COMMANDS, make_app
from vdkit.errors import UsageError

MIB = 1 << 20


@pytest.fixture
def vdkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vdkit:
    monkeypatch.chdir(tmp_path)
    return Vdkit(monkeypatch)


@pytest.fixture
def chain(vdkit: Vdkit) -> bytes:
    """base.vmdk with data at 1 MiB, child.vmdk with its own in it; what the child reads there."""
    data, own = os.urandom(MIB), os.urandom(1 << 16)
    assert vdkit("create", "base.vmdk", "64M").code == 0
    assert vdkit("write", "base.vmdk", "1M", stdin=data).code == 0
    assert vdkit("create", "child.vmdk", "--parent", "base.vmdk").code == 0
    assert vdkit("write", "child.vmdk", "1088K", stdin=own).code == 0
    return data[:65536] + own + data[131072:]


def names(folder: str = ".") -> list[str]:
    return sorted(entry.name for entry in Path(folder).iterdir())


# -- sizes and the table of commands ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("1.5G", 3 << 29),
        ("10GiB", 10 << 30),
        ("10GB", 10 << 30),
        ("62T", 62 << 40),
        ("63s", 63 * 512),
        ("0x1000", 4096),
        ("8 K", 8192),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "SIZE") == size


@pytest.mark.parametrize("text", ["", "M", "ten", "1..5G", "1.5", "-1", "1E", "9999999P", "1,5G", "0xZZ"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text, "SIZE")


def test_the_table_of_commands_is_that_of_the_modules() -> None:
    for module, names in COMMANDS.items():
        made = make_app([module])
        found = [command.name for command in made.registered_commands]
        found += [group.name for group in made.registered_groups]
        assert tuple(found) == names


@pytest.mark.parametrize("command", [name for names in COMMANDS.values() for name in names])
def test_every_command_has_a_sentence_and_an_example(vdkit: Vdkit, command: str) -> None:
    done = vdkit(command, "--help")
    assert done.code == 0
    assert f"Example: vdkit {command} " in done.text
    assert vdkit("-h").text.count(f"\n  {command} ") == 1


# -- looking ---------------------------------------------------------------------------------------------


def test_info_of_a_chain(vdkit: Vdkit, chain: bytes) -> None:
    facts = vdkit("info", "child.vmdk", "--chain", "--allocation", "--json").json
    assert (facts["type"], facts["capacity"], facts["allocated"]) == ("monolithicSparse", 64 * MIB, MIB)
    leaf, base = facts["chain"]
    assert (leaf["parent"], leaf["parent_cid"], base["parent"]) == ("base.vmdk", base["cid"], None)
    assert "parent: base.vmdk" in vdkit("info", "child.vmdk", "--chain").text


def test_info_of_what_cannot_be_opened(vdkit: Vdkit, tmp_path: Path) -> None:
    (tmp_path / "rdm.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        'createType="vmfsRawDeviceMap"\nRW 204800 VMFSRDM "rdm-rdm.vmdk"\n'
    )
    done = vdkit("info", "rdm.vmdk", "--json")
    assert done.code == 0
    assert done.json["type"] == "vmfsRawDeviceMap"
    assert "raw device mapping" in done.json["notes"][0]
    vdkit("map", "rdm.vmdk").failed(2, "raw device mapping")
    vdkit("check", "rdm.vmdk").failed(63, "raw device mapping")


def test_map_names_the_link(vdkit: Vdkit, chain: bytes) -> None:
    rows = [(e["start"], e["depth"]) for e in vdkit("map", "child.vmdk", "--json").json if e["data"]]
    assert rows == [(MIB, 1), (MIB + 65536, 0), (MIB + 131072, 1)]
    assert vdkit("map", "child.vmdk", "--output=json").out == vdkit("map", "child.vmdk", "--json").out
    text = vdkit("map", "child.vmdk").text.splitlines()
    assert text[0].split() == ["offset", "length", "kind", "depth"]
    assert [line.split() for line in text[2:4]] == [
        ["1048576", "65536", "data", "1"],
        ["1114112", "65536", "data", "0"],
    ]
    assert vdkit("map", "child.vmdk", "--output=xml").code == 2


def test_a_picture_never_replaces_another_file(vdkit: Vdkit, chain: bytes, tmp_path: Path) -> None:
    done = vdkit("map", "child.vmdk", "--png", "map.png", "--json")
    assert done.json["data"] == [65536, MIB - 65536]
    first = (tmp_path / "map.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert vdkit("map", "child.vmdk", "--png", "map.png", "--width", "512").code == 0
    assert (tmp_path / "map.png").read_bytes() != first
    before = (tmp_path / "base.vmdk").read_bytes()
    vdkit("map", "child.vmdk", "--png", "base.vmdk").failed(6, "base.vmdk", "no PNG")
    assert (tmp_path / "base.vmdk").read_bytes() == before
    vdkit("map", "child.vmdk", "--png", "x.png", "--width", "9").failed(2, "256")
    assert not [name for name in names() if "partial" in name]


def test_compare(vdkit: Vdkit, chain: bytes, tmp_path: Path) -> None:
    assert vdkit("compare", "base.vmdk", "base.vmdk").code == 0
    done = vdkit("compare", "base.vmdk", "child.vmdk", "--json")
    assert (done.code, done.last["same"], done.last["first_difference"]) == (1, False, MIB + 65536)
    vdkit("compare", "base.vmdk", "gone.vmdk").failed(2, "gone.vmdk")
    vdkit("compare", "base.vmdk", "base.vmdk", "-f", "vhd").failed(2, "vhd")
    (tmp_path / "a.raw").write_bytes(b"x" * 4096)
    (tmp_path / "b.raw").write_bytes(b"x" * 4096 + bytes(4096))
    assert vdkit("compare", "a.raw", "b.raw").code == 0
    assert vdkit("compare", "-s", "a.raw", "b.raw").code == 1


def test_measure(vdkit: Vdkit, chain: bytes) -> None:
    for kind in ("monolithicSparse", "streamOptimized", "twoGbMaxExtentFlat", "vmfsThin", "raw"):
        told = vdkit("measure", "child.vmdk", "-O", kind, "--json").json
        suffix = "raw" if kind == "raw" else "vmdk"
        assert vdkit("convert", "child.vmdk", f"{kind}.{suffix}", "-O", kind).code == 0
        used = sum(p.stat().st_blocks * 512 for p in Path().glob(f"{kind}*"))
        assert used <= told["required"] + 65536
        assert told["required"] <= told["fully-allocated"]
    assert vdkit("measure", "--size", "1T", "--json").json["required"] < 1 << 30
    vdkit("measure", "--size", "3T").failed(5, "2 TiB")
    vdkit("measure").failed(2, "--size")


# -- bytes -----------------------------------------------------------------------------------------------


def test_read_and_write(vdkit: Vdkit, chain: bytes) -> None:
    assert vdkit("read", "child.vmdk", "1M", "1M").out == chain
    assert vdkit("read", "child.vmdk", 2 * MIB - 3, 6).out == chain[-3:] + bytes(3)
    shown = vdkit("read", "child.vmdk", "1M", "33", "--hex").text.splitlines()
    assert shown[0].startswith("000000100000  " + chain[:8].hex(" "))
    assert len(shown) == 3
    assert vdkit("read", "child.vmdk", "8M", "1M", "--hex").text.count("*") == 1
    vdkit("read", "child.vmdk", "64M", "1").failed(2, "child.vmdk", "67108864")
    vdkit("write", "child.vmdk", 64 * MIB - 1, stdin=b"ab").failed(2, "child.vmdk")
    assert vdkit("read", "child.vmdk", 64 * MIB - 1, 1).out == b"\0"


def test_a_parent_is_not_written_nor_deleted_by_accident(vdkit: Vdkit, chain: bytes) -> None:
    vdkit("write", "base.vmdk", 0, stdin=b"x").failed(2, "child.vmdk", "would no longer open")
    vdkit("delete", "base.vmdk").failed(2, "child.vmdk", "lost")
    vdkit("resize", "base.vmdk", "+1M").failed(2, "child.vmdk")
    assert vdkit("read", "child.vmdk", "1M", "1M").out == chain
    assert vdkit("delete", "child.vmdk").code == 0
    assert vdkit("delete", "base.vmdk").code == 0
    assert names() == []


# -- making ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("raw", 1),
        ("monolithicSparse", 1),
        ("monolithicFlat", 2),
        ("twoGbMaxExtentSparse", 3),
        ("twoGbMaxExtentFlat", 3),
        ("streamOptimized", 1),
        ("vmfs", 2),
        ("vmfsThin", 2),
    ],
)
def test_create_every_type(vdkit: Vdkit, kind: str, files: int) -> None:
    suffix = "raw" if kind == "raw" else "vmdk"
    split = ["--split", "8M"] if kind.startswith("two") else []
    made = vdkit("create", f"d.{suffix}", "16M", "-t", kind, *split, "--json").json
    assert (made["type"], made["capacity"], len(names())) == (kind, 16 * MIB, files)
    assert vdkit("info", f"d.{suffix}", "--json").json["capacity"] == 16 * MIB
    if kind != "raw":
        assert vdkit("check", f"d.{suffix}").code == 0
    vdkit("create", f"d.{suffix}", "16M", "-t", kind, *split).failed(6, "exists")


def test_create_refuses(vdkit: Vdkit, chain: bytes) -> None:
    before = names()
    vdkit("create", "d.vmdk", "3T").failed(5, "2 TiB")
    vdkit("create", "d.vmdk", "1M", "-t", "qcow2").failed(2, "qcow2", "monolithicSparse")
    vdkit("create", "d.vmdk").failed(2, "size")
    vdkit("create", "d.vmdk", "1M", "--parent", "base.vmdk").failed(2, "parent")
    vdkit("create", "d.vmdk", "1M", "--split", "1M").failed(2, "not split")
    vdkit("create", "d.vmdk", "1M", "--grain", "5000").failed(2, "grain")
    vdkit("create", "d.vmdk", "1M", "-t", "streamOptimized", "--preallocate").failed(2, "streamOptimized")
    vdkit("create", "d.vmdk", "1M", "--adapter", "nvme9").failed(2, "nvme9")
    vdkit("create", "no/d.vmdk", "1M").failed(6, "no")
    assert names() == before


def test_a_child_is_of_the_family_of_its_parent(vdkit: Vdkit) -> None:
    for kind, child in (
        ("vmfsThin", "vmfsSparse"),
        ("twoGbMaxExtentFlat", "twoGbMaxExtentSparse"),
        ("monolithicFlat", "monolithicSparse"),
    ):
        assert vdkit("create", f"{kind}.vmdk", "8M", "-t", kind).code == 0
        made = vdkit("create", f"{kind}-1.vmdk", "--parent", f"{kind}.vmdk", "--json").json
        assert (made["type"], made["capacity"]) == (child, 8 * MIB)


def test_convert_through_a_pipe(vdkit: Vdkit, chain: bytes) -> None:
    stream = vdkit("convert", "child.vmdk", "-", "-O", "streamOptimized")
    assert stream.code == 0
    assert "streamOptimized" in stream.err
    assert vdkit("convert", "-", "back.vmdk", stdin=stream.out).code == 0
    assert vdkit("compare", "child.vmdk", "back.vmdk").code == 0
    vdkit("convert", "-", "half.vmdk", stdin=stream.out[:-70000]).failed(5, "breaks off")
    assert not Path("half.vmdk").exists()
    vdkit("convert", "child.vmdk", "-", "-O", "raw").failed(2, "streamOptimized")
    vdkit("convert", "child.vmdk", "-", "-O", "streamOptimized", "--json").failed(2, "--json")


def test_convert_overwrites_only_when_asked(vdkit: Vdkit, chain: bytes) -> None:
    Path("new.vmdk").write_text("precious")
    vdkit("convert", "child.vmdk", "new.vmdk").failed(6, "exists")
    assert Path("new.vmdk").read_text() == "precious"
    assert vdkit("convert", "child.vmdk", "new.vmdk", "--overwrite").code == 0
    assert vdkit("compare", "child.vmdk", "new.vmdk").code == 0
    vdkit("convert", "child.vmdk", "base.vmdk", "--overwrite").failed(2, "belongs to the disk")


# -- changing --------------------------------------------------------------------------------------------


def test_resize(vdkit: Vdkit, chain: bytes) -> None:
    assert vdkit("delete", "child.vmdk").code == 0
    done = vdkit("resize", "base.vmdk", "+1G", "--json").last
    assert (done["before"], done["capacity"]) == (64 * MIB, 64 * MIB + (1 << 30))
    assert vdkit("resize", "base.vmdk", "2G").code == 0
    assert vdkit("info", "base.vmdk", "--json").json["capacity"] == 2 << 30
    assert vdkit("check", "base.vmdk").code == 0
    for size in ("1G", "-1G"):
        vdkit("resize", "base.vmdk", size).failed(2, "never shrinks", "vdkit shrink")
    vdkit("resize", "base.vmdk", "3T").failed(5, "2 TiB")
    vdkit("resize", "base.vmdk", "big").failed(2, "'big'")


def test_shrink_and_defragment(vdkit: Vdkit, chain: bytes) -> None:
    assert vdkit("write", "child.vmdk", "8M", stdin=bytes(4 * MIB)).code == 0
    done = vdkit("shrink", "child.vmdk", "--json").last
    assert done["bytes_before"] - done["bytes_after"] >= 4 * MIB
    assert vdkit("defragment", "child.vmdk").code == 0
    assert vdkit("read", "child.vmdk", "1M", "1M").out == chain
    assert vdkit("create", "flat.vmdk", "1M", "-t", "monolithicFlat").code == 0
    vdkit("shrink", "flat.vmdk").failed(2, "monolithicFlat", "convert")


def test_rename_moves_all_files(vdkit: Vdkit, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert vdkit("create", "a.vmdk", "16M", "-t", "twoGbMaxExtentFlat", "--split", "8M").code == 0
    assert vdkit("rename", "a.vmdk", "b.vmdk").code == 0
    assert names() == ["b-f001.vmdk", "b-f002.vmdk", "b.vmdk", "sub"]
    assert vdkit("rename", "b.vmdk", "sub/c.vmdk").code == 0
    assert names("sub") == ["c-f001.vmdk", "c-f002.vmdk", "c.vmdk"]
    assert vdkit("check", "sub/c.vmdk").code == 0
    vdkit("rename", "gone.vmdk", "x.vmdk").failed(6, "gone.vmdk")


def test_attach(vdkit: Vdkit, chain: bytes, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    assert vdkit("rename", "base.vmdk", "far/base.vmdk", "--force").code == 0
    vdkit("map", "child.vmdk").failed(5, "base.vmdk")
    assert vdkit("attach", "far/base.vmdk", "child.vmdk", "--check").code == 0
    vdkit("map", "child.vmdk").failed(5, "base.vmdk")
    assert vdkit("attach", "far/base.vmdk", "child.vmdk").code == 0
    assert vdkit("read", "child.vmdk", "1M", "1M").out == chain
    assert vdkit("create", "other.vmdk", "64M").code == 0
    vdkit("attach", "other.vmdk", "child.vmdk").failed(5, "content id")
    assert vdkit("create", "small.vmdk", "1M").code == 0
    vdkit("attach", "small.vmdk", "child.vmdk", "--check").failed(5, "small.vmdk")


def test_metadata(vdkit: Vdkit, chain: bytes) -> None:
    before = vdkit("info", "child.vmdk", "--json").json["cid"]
    assert vdkit("meta", "child.vmdk", "toolsVersion", "2147483647").code == 0
    assert vdkit("meta", "child.vmdk", "ddb.toolsVersion").text == "2147483647\n"
    assert vdkit("meta", "child.vmdk", "--json").json["metadata"]["adapterType"] == "lsilogic"
    assert vdkit("info", "child.vmdk", "--json").json["cid"] == before
    vdkit("meta", "child.vmdk", "nothing").failed(2, "nothing")
    vdkit("meta", "child.vmdk", "comment", 'a"b').failed(2, "descriptor")
    vdkit("meta", "child.vmdk", "toolsVersion", "new").failed(2, "number")


# -- check and inspect -----------------------------------------------------------------------------------


def _damage(path: Path) -> int:
    """Point the second grain at the first one's place; the offset of the changed entry."""
    data = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<Q", data, 56)
    (table,) = struct.unpack_from("<I", data, directory * 512)
    at = table * 512 + 17 * 4
    struct.pack_into("<I", data, at, 0x7FFFFFFF)
    path.write_bytes(data)
    return at


def test_check_repair_and_undo(vdkit: Vdkit, chain: bytes, tmp_path: Path) -> None:
    done = vdkit("check", "child.vmdk", "--json")
    assert (done.code, done.json["verdict"], done.json["exit_code"]) == (0, "clean", 0)
    assert vdkit("delete", "child.vmdk").code == 0
    base = tmp_path / "base.vmdk"
    at = _damage(base)
    damaged = base.read_bytes()
    done = vdkit("check", "base.vmdk")
    assert done.code == 2
    assert f"byte {at}" in done.text
    vdkit("check", "base.vmdk", "--repair").failed(1, "--to", "--in-place", "--dry-run")
    assert vdkit("check", "base.vmdk", "--repair", "--dry-run").code == 0
    assert base.read_bytes() == damaged
    assert vdkit("check", "base.vmdk", "--repair", "--to", "good.vmdk").code == 0
    assert base.read_bytes() == damaged
    assert vdkit("check", "good.vmdk").code == 0
    done = vdkit("check", "base.vmdk", "--repair", "--in-place", "--json")
    assert (done.code, done.json["undo"]) == (0, "base.vmdk.undo")
    assert vdkit("check", "base.vmdk").code == 0
    assert vdkit("compare", "base.vmdk", "good.vmdk").code == 0
    assert vdkit("check", "--undo-repair", "base.vmdk.undo").code == 0
    assert base.read_bytes() == damaged


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ([], 1, "which disk"),
        (["gone.vmdk"], 1, "gone.vmdk"),
        (["disk.raw"], 63, "raw image"),
        (["base.vmdk", "--in-place"], 1, "--repair"),
        (["base.vmdk", "--repair", "--in-place", "--to", "x.vmdk"], 1, "--dry-run"),
        (["base.vmdk", "--repair", "--to", "/tmp/x.vmdk"], 1, "folder of the disk"),
        (["base.vmdk", "--repair", "--dry-run", "--undo", "u"], 1, "--in-place"),
        (["base.vmdk", "--repair", "--dry-run", "--duplicates", "all"], 1, "keep-first"),
        (["base.vmdk", "--repair", "--dry-run", "--parent-cid", "xyz"], 1, "hexadecimal"),
        (["base.vmdk", "--undo-repair", "u"], 1, "nothing else"),
    ],
)
def test_check_refuses(
    vdkit: Vdkit, chain: bytes, tmp_path: Path, arguments: list[str], code: int, word: str
) -> None:
    (tmp_path / "disk.raw").write_bytes(os.urandom(8192))
    vdkit("check", *arguments).failed(code, word)


def test_a_wrong_command_line_is_no_corrupt_disk(vdkit: Vdkit) -> None:
    assert vdkit("check", "--no-such-option").code == 1
    assert vdkit("compare", "--no-such-option").code == 2


def test_inspect_shows_what_is_wrong(vdkit: Vdkit, chain: bytes, tmp_path: Path) -> None:
    assert vdkit("inspect", "base.vmdk", "--tables", "--json").json["sound"] is True
    at = _damage(tmp_path / "base.vmdk")
    found = vdkit("inspect", "base.vmdk", "--tables", "--json").json
    assert found["sound"] is False
    assert [(d["table"], d["entry"], d["primary"]) for d in found["differences"]] == [(0, 17, 0x7FFFFFFF)]
    text = vdkit("inspect", "base.vmdk", "--tables").text
    assert "the two copies differ in 1 entries" in text
    assert "1 grains lie outside" in text
    (spot,) = vdkit("inspect", "base.vmdk", "--grain", 17, "--json").json["locations"]
    assert (spot["entry_offset"], spot["value"]) == (at, 0x7FFFFFFF)
    assert "outside the file" in spot["problem"]
    text = vdkit("inspect", "base.vmdk", "--offset", "1088K").text
    assert f"entry at byte {at}" in text
    assert "redundant copy says" in text
    vdkit("inspect", "base.vmdk", "--offset", "1T").failed(2, "outside")
    vdkit("inspect", "base.vmdk", "--offset", "1", "--grain", "1").failed(2, "not both")
