"""Local disks through the kit's own API, with qemu-img as the witness."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vdkit.block.workers import CancelToken
from vdkit.disklib.connection import connect
from vdkit.disklib.local import allocation_map, convert, describe
from vdkit.disklib.opening import detect
from vdkit.errors import (
    AlreadyExists,
    Cancelled,
    NotADisk,
    NotFound,
    UsageError,
    VixError,
)
from vdkit.vmdk import DiskType

pytestmark = pytest.mark.witness("qemu-img")

MIB = 1 << 20
TYPES = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "vmfs",
    "vmfsThin",
    "streamOptimized",
]


def qemu(*arguments: object) -> str:
    command = ["qemu-img", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """24 MiB and a bit: data, a hole, zeroes that are written."""
    path = tmp_path / "source.raw"
    content = random.Random(7)
    with open(path, "wb") as file:
        file.write(content.randbytes(3 * MIB))
        file.seek(9 * MIB)
        file.write(bytes(MIB) + content.randbytes(MIB + 512))
        file.truncate(24 * MIB + 1536)
    return path


@pytest.mark.parametrize("kind", TYPES)
def test_there_and_back(raw: Path, tmp_path: Path, kind: str) -> None:
    vmdk, back = tmp_path / "disk.vmdk", tmp_path / "back.raw"
    seen: list[tuple[int, int]] = []
    result = convert(raw, vmdk, to=kind, progress=lambda done, total: seen.append((done, total)))
    assert result.read >= 4 * MIB
    assert seen[-1] == (24 * MIB + 1536, 24 * MIB + 1536)
    assert "Images are identical" in qemu("compare", "-f", "raw", "-F", "vmdk", raw, vmdk)
    convert(vmdk, back, to="raw")
    assert back.read_bytes() == raw.read_bytes()
    facts = describe(vmdk)
    shown = "vmfs" if kind == "vmfsThin" else kind
    assert (facts["type"], facts["capacity"], facts["format"]) == (shown, 24 * MIB + 1536, "vmdk")
    assert facts["thin"] == (kind == "vmfsThin")
    json.dumps(facts)


@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat", "streamOptimized"])
def test_disks_of_qemu_are_read(raw: Path, tmp_path: Path, subformat: str) -> None:
    vmdk, back = tmp_path / "qemu.vmdk", tmp_path / "back.raw"
    qemu("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, vmdk)
    convert(vmdk, back, to="raw")
    assert back.read_bytes().ljust(raw.stat().st_size, b"\0")[: raw.stat().st_size] == raw.read_bytes()


@pytest.mark.parametrize("old", ["raw", *TYPES])
@pytest.mark.parametrize("new", ["raw", *TYPES])
def test_every_type_to_every_type(raw: Path, tmp_path: Path, old: str, new: str) -> None:
    first, second = tmp_path / "first.img", tmp_path / "second.img"
    convert(raw, first, to=old)
    convert(first, second, to=new)
    kind = "raw" if new == "raw" else "vmdk"
    assert "Images are identical" in qemu("compare", "-f", "raw", "-F", kind, raw, second)


def runs(entries: list[Any]) -> list[tuple[int, int]]:
    """Ranges with data, joined."""
    joined: list[tuple[int, int]] = []
    for entry in entries:
        if entry["data"] and not entry["zero"]:
            if joined and sum(joined[-1]) == entry["start"]:
                joined[-1] = (joined[-1][0], joined[-1][1] + entry["length"])
            else:
                joined.append((entry["start"], entry["length"]))
    return joined


def test_the_map_agrees_with_qemu(raw: Path, tmp_path: Path) -> None:
    vmdk = tmp_path / "disk.vmdk"
    convert(raw, vmdk, to="monolithicSparse")
    theirs = json.loads(qemu("map", "--output=json", vmdk))
    ours = allocation_map(vmdk)
    assert runs(list(ours)) == runs(theirs)
    assert set(ours[0]) <= set(theirs[0]) | {"present", "compressed", "filename"}  # newer ones tell these
    assert sum(entry["length"] for entry in ours) == 24 * MIB + 1536


def test_nothing_is_replaced(raw: Path, tmp_path: Path) -> None:
    vmdk = tmp_path / "disk.vmdk"
    vmdk.write_text("precious")
    with pytest.raises(AlreadyExists, match=r"disk\.vmdk.*another name"):
        convert(raw, vmdk, to="vmfs")
    assert vmdk.read_text() == "precious"
    # A part of the new disk is in the way: it stays, and nothing else is left.
    flat = tmp_path / "other-flat.vmdk"
    flat.write_text("precious too")
    with pytest.raises(AlreadyExists):
        convert(raw, tmp_path / "other.vmdk", to="vmfs")
    assert flat.read_text() == "precious too"
    assert not (tmp_path / "other.vmdk").exists()


@pytest.mark.parametrize("kind", ["raw", *TYPES])
def test_no_partial_disk_is_left(raw: Path, tmp_path: Path, kind: str) -> None:
    before = names(tmp_path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(raw, tmp_path / "disk.vmdk", to=kind, progress=interrupt)
    assert names(tmp_path) == before
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        convert(raw, tmp_path / "disk.vmdk", to=kind, cancel=token)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"to": "qcow2"}, UsageError),
        ({"to": "vmfsSparse"}, UsageError),
        ({"to": "raw", "source_format": "vhd"}, UsageError),
        ({"to": "raw", "source_format": "vmdk"}, NotADisk),
    ],
)
def test_refusals(raw: Path, tmp_path: Path, arguments: dict[str, Any], kind: type[VixError]) -> None:
    with pytest.raises(kind) as caught:
        convert(raw, tmp_path / "x", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_missing_sources_are_named(tmp_path: Path) -> None:
    for name in ("none.raw", "none.vmdk"):
        with pytest.raises(NotFound, match=name.replace(".", r"\.")):
            convert(tmp_path / name, tmp_path / "x.raw", to="raw")


def test_what_a_file_is(raw: Path, tmp_path: Path) -> None:
    assert detect(raw) == "raw"
    assert describe(raw)["format"] == "raw"
    convert(raw, tmp_path / "a.vmdk", to=DiskType.MONOLITHIC_SPARSE)
    renamed = tmp_path / "renamed.img"
    renamed.write_bytes((tmp_path / "a.vmdk").read_bytes())
    assert detect(renamed) == "vmdk"
    empty = tmp_path / "empty.vmdk"
    empty.write_bytes(b"")
    with pytest.raises(VixError):
        describe(empty)


def test_a_local_connection(raw: Path, tmp_path: Path) -> None:
    vmdk = tmp_path / "disk.vmdk"
    convert(raw, vmdk, to="monolithicSparse")
    with connect() as connection:
        assert connection.local
        with connection.open(str(vmdk), read_only=False) as disk:
            assert disk.transport_mode == "file"
            disk.write_from(512, b"y" * 512)
        with connection.open(str(vmdk)) as disk:
            found = bytearray(512)
            disk.read_into(512, found)
            assert found == b"y" * 512
