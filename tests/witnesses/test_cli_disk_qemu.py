"""The commands against qemu-img's: the same maps, the same exit codes, the same places in the files."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clitools import Vdkit

pytestmark = pytest.mark.witness("qemu-img", "qemu-io")

MIB = 1 << 20


def qemu(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["qemu-img", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def vdkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vdkit:
    """Beside a chain of qemu's: base.vmdk, middle.vmdk, leaf.vmdk."""
    monkeypatch.chdir(tmp_path)
    assert qemu("create", "-f", "vmdk", "base.vmdk", "40M").returncode == 0
    content = random.Random(5)
    below = None
    for name in ("base", "middle", "leaf"):
        if below is not None:
            made = qemu("create", "-f", "vmdk", "-b", f"{below}.vmdk", "-F", "vmdk", f"{name}.vmdk")
            assert made.returncode == 0, made.stderr
        below = name
        writes = []
        for _ in range(12):
            start = content.randrange(39 * 1024)
            writes += ["-c", f"write -P {content.randrange(1, 255)} {start}k {content.randrange(1, 900)}k"]
        subprocess.run(["qemu-io", *writes, f"{name}.vmdk"], check=True, capture_output=True, timeout=60)
    return Vdkit(monkeypatch)


def seen(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("start", "length", "depth", "present", "zero", "data", "offset")
    return [tuple(entry.get(key) for key in keys) for entry in entries]


def test_the_map_of_a_chain_is_the_same(vdkit: Vdkit) -> None:
    ours = vdkit("map", "--output=json", "leaf.vmdk")
    theirs = qemu("map", "--output=json", "leaf.vmdk").stdout
    assert seen(ours.json) == seen(json.loads(theirs))
    assert len(ours.text.splitlines()) == len(theirs.splitlines())


def test_a_byte_lies_where_qemu_says(vdkit: Vdkit) -> None:
    names = {0: "leaf.vmdk", 1: "middle.vmdk", 2: "base.vmdk"}
    for entry in json.loads(qemu("map", "--output=json", "leaf.vmdk").stdout):
        place = entry["start"] + entry["length"] // 2
        last = vdkit("inspect", "leaf.vmdk", "--offset", place, "--json").json["locations"][-1]
        assert last["depth"] == entry["depth"]
        if entry["data"]:
            assert last["kind"] == "data"
            assert last["file_offset"] == entry["offset"] + entry["length"] // 2
            assert Path(last["file"]).name == names[entry["depth"]]
        else:
            assert last["kind"] == "absent"


def test_compare_ends_as_qemus_does(vdkit: Vdkit, tmp_path: Path) -> None:
    assert qemu("convert", "-O", "raw", "leaf.vmdk", "flat.raw").returncode == 0
    (tmp_path / "long.raw").write_bytes((tmp_path / "flat.raw").read_bytes() + bytes(MIB))
    (tmp_path / "other.raw").write_bytes((tmp_path / "flat.raw").read_bytes()[:-1] + b"!")
    cases = [
        ("leaf.vmdk", "flat.raw"),
        ("leaf.vmdk", "long.raw"),
        ("leaf.vmdk", "other.raw"),
        ("leaf.vmdk", "base.vmdk"),
        ("leaf.vmdk", "gone.vmdk"),
    ]
    for first, second in cases:
        form = "raw" if second.endswith("raw") else "vmdk"
        for strict in ([], ["-s"]):
            if strict and second in ("flat.raw", "other.raw"):
                continue  # what of a raw file is allocated is the file system's to say
            arguments = ["compare", *strict, "-f", "vmdk", "-F", form, first, second]
            assert vdkit(*arguments).code == qemu(*arguments).returncode, arguments
    found = vdkit("compare", "leaf.vmdk", "base.vmdk", "--json").last["first_difference"]
    mismatch = int(qemu("compare", "leaf.vmdk", "base.vmdk").stdout.split()[-1].rstrip("!"))
    # qemu names the start of a block that differs, this the byte.
    assert 0 <= found - mismatch < MIB


def test_check_ends_as_qemus_does(vdkit: Vdkit, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    damaged = bytearray((tmp_path / "base.vmdk").read_bytes())
    (directory,) = struct.unpack_from("<Q", damaged, 56)
    (table,) = struct.unpack_from("<I", damaged, directory * 512)
    struct.pack_into("<I", damaged, table * 512 + 8, 0x00FFFFFF)
    (tmp_path / "damaged.vmdk").write_bytes(damaged)
    for name, form, code in (("leaf.vmdk", "vmdk", 0), ("disk.raw", "raw", 63)):
        assert vdkit("check", name).code == qemu("check", "-f", form, name).returncode == code
    # Its own check of VMDKs gives up at the first bad entry, with 1; its manual calls a corrupt image 2.
    assert vdkit("check", "damaged.vmdk").code == 2
    assert qemu("check", "-f", "vmdk", "damaged.vmdk").returncode == 1
    assert vdkit("check", "gone.vmdk").code == qemu("check", "-f", "vmdk", "gone.vmdk").returncode == 1
    assert vdkit("check").code == qemu("check").returncode == 1


def test_measure_says_what_qemus_does(vdkit: Vdkit) -> None:
    theirs = json.loads(qemu("measure", "-O", "raw", "--output=json", "leaf.vmdk").stdout)
    ours = vdkit("measure", "-O", "raw", "leaf.vmdk", "--json").json
    assert {key: ours[key] for key in theirs} == theirs


def test_what_the_commands_make_qemu_reads(vdkit: Vdkit) -> None:
    """Create, write, resize, shrink, defragment and rename, one after the other on one disk."""
    data = random.Random(6).randbytes(3 * MIB)
    assert vdkit("create", "d.vmdk", "20M", "-t", "twoGbMaxExtentSparse", "--split", "8M").code == 0
    assert vdkit("write", "d.vmdk", "7M", stdin=data).code == 0
    assert vdkit("write", "d.vmdk", "12M", stdin=bytes(2 * MIB)).code == 0
    for command in (["resize", "d.vmdk", "30M"], ["shrink", "d.vmdk"], ["defragment", "d.vmdk"]):
        assert vdkit(*command).code == 0
        assert qemu("convert", "-f", "vmdk", "-O", "raw", "d.vmdk", "d.raw").returncode == 0
        raw = Path("d.raw").read_bytes()
        assert raw[7 * MIB : 10 * MIB] == data
        assert not raw[: 7 * MIB].strip(b"\0") and not raw[10 * MIB :].strip(b"\0")
    assert len(raw) == 30 * MIB
    assert vdkit("rename", "d.vmdk", "e.vmdk").code == 0
    assert "identical" in qemu("compare", "-f", "vmdk", "-F", "raw", "e.vmdk", "d.raw").stdout


@pytest.mark.witness("file")
def test_the_picture_is_a_png(vdkit: Vdkit) -> None:
    assert vdkit("map", "leaf.vmdk", "--png", "map.png", "--width", "800").code == 0
    said = subprocess.run(["file", "map.png"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "PNG image data, 800 x" in said
    assert "8-bit/color RGB" in said
