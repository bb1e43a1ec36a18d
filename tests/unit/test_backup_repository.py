"""The repository and the order in which a point comes into being."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backuptools import VM, add_fake_disk, clock_from
from vdkit.backup import names
from vdkit.backup.document import read_object, write_object
from vdkit.backup.manifest import Consistency, Kind
from vdkit.backup.names import VmIdentity
from vdkit.backup.repository import Point, Repository
from vdkit.backup.writer import begin_point
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.errors import (
    AlreadyExists,
    ExitCode,
    FormatError,
    PointInvalid,
    PointNotFound,
    RepositoryLocked,
    RepositoryMissing,
    UnsupportedVersion,
    UsageError,
)

FOLDER = names.folder_name(VM)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return FolderStore(tmp_path) if request.param == "folder" else MemoryStore()


def make_point(repository: Repository, *, parent: bool = False, data: bytes = b"disk") -> Point:
    with begin_point(repository, VM, clock=clock_from()) as writer:
        add_fake_disk(writer, parent=parent, data=data)
        return writer.commit(hardware={"cpus": 2, "firmware": "efi"})


def test_a_folder_that_is_no_repository_is_refused_with_a_remedy(store: Store) -> None:
    with pytest.raises(RepositoryMissing, match="check the path") as caught:
        Repository.open(store)
    assert caught.value.exit_code == ExitCode.NO_REPOSITORY


def test_a_repository_is_made_once(store: Store) -> None:
    Repository.create(store)
    assert Repository.open(store).points() == []
    with pytest.raises(AlreadyExists, match="a repository already"):
        Repository.create(store)
    assert store.list() == [names.FORMAT_FILE]


def test_only_an_empty_folder_becomes_a_repository(store: Store) -> None:
    write_object(store, "repository.json.0011223344556677.partial", b"{")  # a killed creation's
    made = Repository.open_or_create(store)
    assert Repository.open_or_create(store).id == made.id == Repository.open(store).id
    assert store.list() == [names.FORMAT_FILE]
    other = MemoryStore()
    write_object(other, "holiday.jpg", b"x")
    with pytest.raises(RepositoryMissing):
        Repository.open_or_create(other)
    assert other.list() == ["holiday.jpg"]


def test_unknown_versions_and_formats_are_refused() -> None:
    for content, error in (
        (b'{"format": "vdkit-backup-repository", "version": 2}', UnsupportedVersion),
        (b'{"format": "restic", "version": 1}', FormatError),
        (b"", FormatError),
        (b'{"format": "vdkit-backup-repository", "version": 1, "id": "../x"}', FormatError),
        (b'{"format": "vdkit-backup-repository", "version": true}', FormatError),
    ):
        store = MemoryStore()
        write_object(store, names.FORMAT_FILE, content)
        with pytest.raises(error):
            Repository.open(store)


def test_a_point_holds_what_was_given(store: Store) -> None:
    repository = Repository.create(store)
    made = make_point(repository)
    assert repository.points() == [made]
    again = Repository.open(store).find(made.id)
    assert again == made
    assert again.manifest.vm == VM
    assert again.manifest.created == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert again.manifest.hardware == {"cpus": 2, "firmware": "efi"}
    assert again.manifest.consistency is Consistency.CRASH
    assert again.kind is Kind.FULL
    assert again.stored == sum(d.file.size + d.map.size for d in again.manifest.disks)
    files = repository.folder_store(FOLDER).list()
    assert sorted(set(files) - {names.LOCK_FILE}) == sorted(
        [f"{made.id}.json", f"disk-2000.{made.id}.vmdk", f"disk-2000.{made.id}.map.json"]
    )


def test_points_follow_each_other_by_sequence_even_if_the_clock_goes_back(store: Store) -> None:
    repository = Repository.create(store)
    ids = []
    for start in (datetime(2026, 5, 1, tzinfo=UTC), datetime(2025, 5, 1, tzinfo=UTC)):
        with begin_point(repository, VM, clock=clock_from(start)) as writer:
            assert (writer.previous.id if writer.previous else None) == (ids[-1] if ids else None)
            add_fake_disk(writer, parent=bool(ids))
            ids.append(writer.commit().id)
    assert [p.id for p in repository.points()] == ids
    newest = repository.points()[-1]
    assert newest.kind is Kind.INCREMENTAL
    assert [link.point.id for link in repository.chain(newest, 2000)] == ids[::-1]


def test_a_renamed_vm_keeps_its_folder_and_can_be_asked_for_by_name_or_uuid(store: Store) -> None:
    repository = Repository.create(store)
    first = make_point(repository)
    with begin_point(repository, VmIdentity("new name", VM.uuid)) as writer:
        add_fake_disk(writer, parent=True)
        second = writer.commit()
    assert first.folder == second.folder
    assert repository.points("new name") == [second]
    assert repository.points(VM.uuid) == [first, second]
    assert repository.points("nobody") == []


def test_two_writers_of_one_vm_exclude_each_other_and_two_vms_do_not(store: Store) -> None:
    repository = Repository.create(store)
    other = VmIdentity("web server", VM.uuid.replace("5029", "6029"))
    with begin_point(repository, VM):
        with pytest.raises(RepositoryLocked):
            begin_point(repository, VM)
        begin_point(repository, other).abort()
    begin_point(repository, VM).abort()


def test_leaving_without_commit_leaves_nothing(store: Store) -> None:
    repository = Repository.create(store)
    with pytest.raises(ZeroDivisionError), begin_point(repository, VM) as writer:
        add_fake_disk(writer)
        raise ZeroDivisionError
    assert set(repository.folder_store(FOLDER).list()) <= {names.LOCK_FILE}
    assert repository.points() == []


def test_what_an_interrupted_run_left_is_removed_and_nothing_else(store: Store) -> None:
    repository = Repository.create(store)
    kept = make_point(repository)
    folder = repository.folder_store(FOLDER)
    dead = "20260201T000000Z-deadbeef"
    orphan = "20260202T000000Z-0badcafe"
    for name in (
        f"{dead}.json.partial",
        f"disk-2000.{dead}.vmdk",  # renamed already when the run died
        f"disk-2001.{dead}.vmdk.partial",
        f"disk-2001.{dead}.map.json.partial",
        f"disk-2000.{orphan}.vmdk",  # somebody lost its manifest: not ours to remove
        "notes.txt",
    ):
        write_object(folder, name, b"x")
    assert [p.id for p in repository.points()] == [kept.id]
    notices: list[str] = []
    with begin_point(repository, VM, notice=notices.append) as writer:
        assert writer.previous == kept
        assert set(folder.list()) - {names.LOCK_FILE} == {
            f"{writer.id}.json.partial",
            f"{kept.id}.json",
            f"disk-2000.{kept.id}.vmdk",
            f"disk-2000.{kept.id}.map.json",
            f"disk-2000.{orphan}.vmdk",
            "notes.txt",
        }
    assert len(notices) == 1
    assert dead in notices[0]


def test_a_damaged_point_is_not_continued_and_that_is_told(store: Store) -> None:
    repository = Repository.create(store)
    first, second = make_point(repository), make_point(repository, parent=True)
    third, fourth = make_point(repository), make_point(repository, parent=True)
    folder = repository.folder_store(FOLDER)
    folder.remove(f"disk-2000.{third.id}.vmdk")
    data = read_object(folder, f"{fourth.id}.json", 1 << 20)
    folder.remove(f"{fourth.id}.json")
    write_object(folder, f"{fourth.id}.json", data.replace(b"a test", b"a lie!"))
    notices: list[str] = []
    with begin_point(repository, VM, notice=notices.append) as writer:
        assert writer.previous == second
    assert len(notices) == 2
    assert fourth.id in notices[0]
    assert "changed after it was written" in notices[0]
    assert third.id in notices[1]
    assert "missing" in notices[1]
    with pytest.raises(PointInvalid):
        repository.points()
    seen: list[Exception] = []
    assert repository.points(invalid=seen.append) == [first, second, third]
    assert len(seen) == 1


def test_chains_refuse_a_parent_that_is_gone_or_another(store: Store) -> None:
    repository = Repository.create(store)
    first, second = make_point(repository), make_point(repository, parent=True)
    folder = repository.folder_store(FOLDER)
    manifest = read_object(folder, f"{first.id}.json", 1 << 20)
    folder.remove(f"{first.id}.json")
    with pytest.raises(PointInvalid, match=f"parent point {first.id} is missing"):
        repository.chain(second, 2000)
    document = json.loads(manifest)
    from vdkit.backup.document import digest_of

    document["vm"]["name"] = "another"
    document["digest"] = digest_of(document)
    write_object(folder, f"{first.id}.json", json.dumps(document).encode())
    with pytest.raises(PointInvalid, match="not the one it was made on"):
        repository.chain(second, 2000)


def test_points_are_found_by_a_part_of_their_id(store: Store) -> None:
    repository = Repository.create(store)
    first, second = make_point(repository), make_point(repository, parent=True)
    assert repository.find(first.id[-8:]) == first
    assert repository.find(second.id) == second
    with pytest.raises(UsageError, match="short for 2"):
        repository.find("20260131T")
    with pytest.raises(PointNotFound, match="vdkit points"):
        repository.find("19990101")
    with pytest.raises(UsageError):
        repository.find("2")
    with pytest.raises(PointNotFound, match="it holds 2000"):
        first.disk(2001)


def test_a_writer_refuses_what_could_not_be_read_back(store: Store) -> None:
    repository = Repository.create(store)
    with pytest.raises(UsageError):
        VmIdentity("x", "not-a-uuid")
    with pytest.raises(UsageError):
        VmIdentity("\ud800", VM.uuid)
    with begin_point(repository, VM) as writer:
        with pytest.raises(UsageError, match="holds no disk"):
            writer.commit()
        add_fake_disk(writer)
        with pytest.raises(UsageError, match="already"):
            writer.check_open(2000)
        with pytest.raises(UsageError, match="hardware facts"):
            writer.commit(hardware={"when": datetime.now(UTC)})
        writer.commit()
        with pytest.raises(UsageError, match="finished"):
            writer.commit()
        writer.abort()
    assert len(repository.points()) == 1


def test_folder_names_are_plain_whatever_the_vm_is_called() -> None:
    for name in ("../../etc", "a/b", "CON\0", ".hidden", "--flag", "ü\n", "x" * 500):
        folder = names.folder_name(VmIdentity(name, VM.uuid))
        assert names.folder_uuid(folder) == VM.uuid
        assert "/" not in folder
        assert not folder.startswith((".", "-"))
