"""What verification finds, and that it names the place."""

from __future__ import annotations

import hashlib
import json
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backuptools import VM, clock_from
from vdkit.backup import (
    Damage,
    Decision,
    Method,
    Point,
    Repository,
    VerifyProgress,
    backup_disk,
    begin_point,
    open_point,
    verify,
)
from vdkit.backup.document import digest_of
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.block.workers import CancelToken
from vdkit.errors import Cancelled, ExitCode, PointInvalid, VerifyFailed

MIB = 1 << 20
GRAIN = 1 << 16
KEY = 2000
SIZE = 24 * MIB


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a full point and two incrementals, to be copied by each test."""
    path = tmp_path_factory.mktemp("repository")
    repository = Repository.create(FolderStore(path))
    disk = MemoryDevice(SIZE)
    noise = random.Random(5)
    disk.write_from(0, noise.randbytes(16 * MIB))
    # The clock goes back, so that ids sort the other way round than the points follow each other.
    for day, method, ranges in (
        (3, Method.FULL, None),
        (2, Method.CHANGES, RangeSet([(5 * MIB, MIB)])),
        (1, Method.CHANGES, RangeSet([(9 * MIB, 2 * MIB)])),
    ):
        for offset, length in ranges or ():
            disk.write_from(offset, noise.randbytes(length))
        clock = clock_from(datetime(2026, 3, day, tzinfo=UTC))
        with begin_point(repository, VM, clock=clock) as writer:
            backup_disk(disk, writer, key=KEY, label="d", decision=Decision(method, "test"), ranges=ranges)
            writer.commit()
    return path


class Copy:
    """A private copy of the repository."""

    def __init__(self, path: Path) -> None:
        self.repository = Repository.open(FolderStore(path))
        self.points = self.repository.points()
        self.folder = path / self.points[0].folder

    def vmdk(self, number: int) -> Path:
        return self.folder / self.points[number].disk(KEY).file.name

    def manifest(self, number: int) -> Path:
        return self.folder / f"{self.points[number].id}.json"

    def damages(self, *points: Point) -> list[Damage]:
        return list(verify(self.repository, points or None).damages)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Copy:
    import shutil

    return Copy(Path(shutil.copytree(made, tmp_path / "copy")))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def rewrite(path: Path, **changes: object) -> None:
    """A manifest edited by somebody who knows how to make it agree with itself."""
    document = json.loads(path.read_text()) | changes
    document["digest"] = digest_of(document)
    path.write_text(json.dumps(document))


def test_a_whole_repository_verifies(copy: Copy) -> None:
    seen: list[VerifyProgress] = []
    report = verify(copy.repository, progress=seen.append)
    report.check()
    assert (report.points, report.files, report.ok) == (3, 3, True)
    assert report.checked == 16 * MIB + MIB + 2 * MIB
    assert [s.done for s in seen] == sorted(s.done for s in seen)
    assert seen[-1].done == seen[-1].total
    only = verify(copy.repository, [copy.points[1]])
    assert only.files == 2, "the point and what it stands on"


def test_a_damage_tells_which_points_it_spoils(copy: Copy) -> None:
    flip(copy.vmdk(1), copy.vmdk(1).stat().st_size // 2)
    report = verify(copy.repository)
    assert {d.point for d in report.damages} == {copy.points[1].id}
    assert report.affected == tuple(p.id for p in copy.points[1:])
    assert verify(copy.repository, [copy.points[0]]).ok
    assert not verify(copy.repository, [copy.points[2]]).ok


def test_a_lost_manifest_is_noticed_and_an_unfinished_point_is_not_one(copy: Copy) -> None:
    copy.manifest(2).rename(copy.manifest(2).with_suffix(".json.partial"))
    assert copy.damages() == []
    copy.manifest(2).with_suffix(".json.partial").unlink()
    (damage,) = copy.damages()
    assert damage.point == copy.points[2].id
    assert "the manifest is missing" in damage.what


def test_virtnbdbackup_134_a_flipped_bit_is_named_by_disk_offset_length_file_and_point(copy: Copy) -> None:
    # Random data does not shrink: the grain of disk offset 10 MiB of the third point lies in the middle.
    flip(copy.vmdk(2), copy.vmdk(2).stat().st_size // 2)
    (damage,) = copy.damages()
    assert damage.point == copy.points[2].id
    assert damage.file == copy.vmdk(2).name
    assert damage.key == KEY
    assert 9 * MIB <= damage.offset < 11 * MIB
    assert damage.length == GRAIN
    with pytest.raises(VerifyFailed, match=rf"{damage.length} bytes at offset {damage.offset}") as caught:
        verify(copy.repository).check()
    assert caught.value.exit_code == ExitCode.VERIFY_FAILED


def test_damage_outside_the_data_is_found_too(copy: Copy) -> None:
    flip(copy.vmdk(1), 30_000)  # the empty space before the first grain
    (damage,) = copy.damages()
    assert "SHA-256" in damage.what
    assert damage.point == copy.points[1].id


def test_a_missing_file_breaks_its_point_and_the_ones_above(copy: Copy) -> None:
    copy.vmdk(1).unlink()
    damages = copy.damages()
    assert {d.point for d in damages} == {copy.points[1].id, copy.points[2].id}
    assert "the file is missing" in damages[0].what
    assert copy.damages(copy.points[0]) == []


def test_a_file_cut_short_is_found(copy: Copy) -> None:
    data = copy.vmdk(0).read_bytes()
    copy.vmdk(0).write_bytes(data[: len(data) // 2])
    damages = copy.damages()
    assert damages[0].point == copy.points[0].id
    assert "the manifest says" in damages[0].what
    with pytest.raises(PointInvalid):
        open_point(copy.repository, copy.points[0], KEY)


def test_exchanged_files_are_found(copy: Copy) -> None:
    first, second = copy.vmdk(1).read_bytes(), copy.vmdk(2).read_bytes()
    copy.vmdk(1).write_bytes(second)
    copy.vmdk(2).write_bytes(first)
    assert {d.point for d in copy.damages()} == {copy.points[1].id, copy.points[2].id}


def test_a_file_of_the_same_size_with_another_content_is_found(copy: Copy) -> None:
    """The content id and all sizes agree: only the hashes can tell."""
    data = copy.vmdk(2).read_bytes()
    record = 65536  # the first grain's marker; exchange two stored grains of equal length
    length = data.index((10 * MIB // 512).to_bytes(8, "little"), record) - record
    assert length > 0
    flip(copy.vmdk(2), record + 12 + 40)
    (damage,) = copy.damages()
    assert damage.point == copy.points[2].id
    assert damage.offset == 9 * MIB


def test_a_missing_or_edited_map_is_found(copy: Copy) -> None:
    path = copy.folder / copy.points[0].disk(KEY).map.name
    path.write_text(path.read_text().replace('"key":2000', '"key":2001'))
    (damage,) = copy.damages()
    assert damage.file == path.name
    path.unlink()
    (damage,) = copy.damages()
    assert damage.file == path.name


def test_an_edited_manifest_is_found(copy: Copy) -> None:
    path = copy.manifest(2)
    path.write_text(path.read_text().replace('"crash"', '"quiesced"'))
    (damage,) = copy.damages()
    assert "changed after it was written" in damage.what
    assert (damage.point, damage.file) == (copy.points[2].id, path.name)


def test_a_manifest_made_to_agree_with_itself_does_not_agree_with_the_files(copy: Copy) -> None:
    disks = json.loads(copy.manifest(2).read_text())["disks"]
    disks[0]["file"]["sha256"] = "0" * 64
    rewrite(copy.manifest(2), disks=disks)
    (damage,) = Copy(copy.folder.parent).damages()
    assert "SHA-256 is not the one in the manifest" in damage.what


def test_a_parent_whose_manifest_was_replaced_is_found(copy: Copy) -> None:
    rewrite(copy.manifest(0), consistency="quiesced")
    damages = Copy(copy.folder.parent).damages()
    assert any("not the one it was made on" in d.what for d in damages)


def test_a_wrong_parent_is_found(copy: Copy) -> None:
    first = json.loads(copy.manifest(0).read_text())
    rewrite(copy.manifest(2), parent={"id": first["id"], "digest": first["digest"]})
    damages = Copy(copy.folder.parent).damages()
    assert {d.point for d in damages} == {copy.points[2].id}
    assert "links" in damages[0].what or "is not" in damages[0].what


def test_a_link_put_in_place_of_a_file_is_not_followed(copy: Copy) -> None:
    elsewhere = copy.vmdk(2).rename(copy.folder.parent / "elsewhere")
    copy.vmdk(2).symlink_to(elsewhere)
    (damage,) = copy.damages()
    assert "symbolic link" in damage.what


def test_a_descriptor_in_place_of_a_file_cannot_lead_elsewhere(copy: Copy) -> None:
    """Even by somebody who can make a manifest agree with it."""
    (copy.folder / "other.raw").write_bytes(b"secret".ljust(SIZE, b"."))
    record = copy.points[0].disk(KEY)
    text = (
        f"# Disk DescriptorFile\nversion=1\nCID={record.cid:08x}\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW {SIZE // 512} FLAT "other.raw" 0\n'
    ).encode()
    copy.vmdk(0).write_bytes(text)
    disks = json.loads(copy.manifest(0).read_text())["disks"]
    disks[0]["file"] |= {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    rewrite(copy.manifest(0), disks=disks)
    point = Copy(copy.folder.parent).points[0]
    with pytest.raises(PointInvalid, match="is not disk-2000"):
        open_point(copy.repository, point, KEY)


def test_a_verification_can_be_cancelled(copy: Copy) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        verify(copy.repository, cancel=token)
