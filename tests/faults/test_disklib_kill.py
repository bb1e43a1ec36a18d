"""A converter that is killed at any moment leaves no half disk, and does not stand in the way of the next."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vdkit.disklib.local import convert
from vdkit.disklib.opening import open_local
from vdkit.disklib.publish import SUFFIX, PartialStore, publishing
from vdkit.errors import AlreadyExists, FileLocked, StoreError, UsageError

MIB = 1 << 20
SIZE = 48 * MIB
#: Converts and says when it begins.
PROGRAM = """
import sys
from vdkit.disklib.local import convert
print("begin", flush=True)
convert(sys.argv[1], sys.argv[2], to=sys.argv[3], overwrite=sys.argv[4] == "yes")
print("end", flush=True)
"""
TYPES = [
    "raw",
    "monolithicSparse",
    "monolithicFlat",
    "vmfsThin",
    "streamOptimized",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.raw"
    path.write_bytes(random.Random(11).randbytes(SIZE))
    return path


def digest(path: Path, kind: str) -> bytes:
    with open_local(path, source_format="raw" if kind == "raw" else "vmdk") as disk:
        found = bytearray(disk.capacity)
        disk.read_into(0, found)
    return bytes(found)


def killed(source: Path, target: Path, kind: str, seconds: float, overwrite: str = "no") -> bool:
    """True if the converter was killed before it had ended."""
    command = [sys.executable, "-c", PROGRAM, str(source), str(target), kind, overwrite]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        return "end" not in process.stdout.read()


@pytest.mark.parametrize("kind", TYPES)
def test_a_killed_converter_leaves_no_half_disk(source: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / ("disk.raw" if kind == "raw" else "disk.vmdk")
    choice = random.Random(kind)
    wanted = source.read_bytes()
    deaths = 0
    for turn in range(8):
        was_killed = killed(source, target, kind, choice.random() * 0.05 * turn)
        deaths += was_killed
        if not target.exists():
            continue
        assert digest(target, kind) == wanted
        for path in tmp_path.iterdir():
            path.unlink()
    assert deaths
    left = [path.name for path in tmp_path.iterdir()]
    unpublished = [name for name in left if not name.endswith(SUFFIX)]
    for name in unpublished:  # data whose descriptor the kill came before: it is in nobody's way but its own
        (tmp_path / name).unlink()
    convert(source, target, to=kind)
    assert digest(target, kind) == wanted
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(SUFFIX)] == []


@pytest.mark.parametrize(("old", "new"), [("monolithicFlat", "monolithicFlat"), ("raw", "raw")])
def test_a_killed_overwriting_keeps_the_old_or_has_the_new(
    source: Path, tmp_path: Path, old: str, new: str
) -> None:
    before = tmp_path / "before.raw"
    before.write_bytes(random.Random(12).randbytes(SIZE))
    wanted = source.read_bytes()
    target = tmp_path / ("disk.raw" if new == "raw" else "disk.vmdk")
    choice = random.Random(4)
    for turn in range(6):
        convert(before, target, to=old, overwrite=True)
        killed(source, target, new, choice.random() * 0.05 * turn, "yes")
        if target.exists():
            assert digest(target, new) in (wanted, before.read_bytes())
        else:  # between old and new: the new one is complete, under its names or those with the suffix
            assert (tmp_path / f"disk.vmdk{SUFFIX}").read_text().startswith("# Disk")
            for path in tmp_path.glob("disk*"):
                path.unlink()


@pytest.mark.parametrize("kind", TYPES)
def test_overwriting_replaces_the_files_of_the_old_disk_only(source: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "disk.vmdk"
    stranger = tmp_path / "disk-other.vmdk"
    stranger.write_text("not of this disk")
    for old in TYPES[1:]:
        if not target.exists():
            convert(source, target, to=old)
        else:
            convert(source, target, to=old, overwrite=True)
        convert(source, target, to=kind, overwrite=True)
        assert digest(target, kind) == source.read_bytes()
        if kind == "raw":
            assert sorted(path.name for path in tmp_path.iterdir()) == ["disk-other.vmdk", "disk.vmdk"]
            target.unlink()
    assert stranger.read_text() == "not of this disk"


def test_a_disk_is_not_replaced_by_its_own_copy(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.vmdk"
    convert(source, target, to="monolithicFlat")
    for path in (target, tmp_path / "disk-flat.vmdk"):
        with pytest.raises((UsageError, AlreadyExists)):
            convert(target, path, to="monolithicSparse", overwrite=True)
    assert digest(target, "monolithicFlat") == source.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_two_attempts_at_once_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    with publishing(target) as store:
        with store.create(target.name, MIB) as file:
            file.write_from(0, b"first")
        with pytest.raises(FileLocked, match="somebody is writing"), publishing(target) as second:
            second.create(target.name)
        assert (tmp_path / f"disk.raw{SUFFIX}").exists()
        assert not target.exists()
    assert target.read_bytes().startswith(b"first")
    with pytest.raises(AlreadyExists), publishing(target):
        pass


def test_a_name_that_is_taken_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "disk.vmdk"
    with pytest.raises(AlreadyExists), publishing(target) as store:
        for name in ("disk-flat.vmdk", target.name):
            store.create(name, MIB).close()
        target.write_text("quicker")
    assert [path.name for path in tmp_path.iterdir()] == ["disk.vmdk"]
    assert target.read_text() == "quicker"


def test_a_left_over_of_a_kill_between_two_renames_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk-flat.vmdk").write_bytes(b"x" * 512)
    (tmp_path / f"disk.vmdk{SUFFIX}").write_text("# Disk DescriptorFile")
    with pytest.raises(AlreadyExists, match=rf"disk-flat\.vmdk.*killed.*disk\.vmdk{SUFFIX}"):
        convert(source, tmp_path / "disk.vmdk", to="monolithicFlat")
    assert (tmp_path / "disk-flat.vmdk").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_rename_that_fails_leaves_the_old_or_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    target = tmp_path / "disk.vmdk"
    if overwrite:
        convert(source, target, to="monolithicSparse")

    def failing(self: PartialStore, last: str) -> None:
        names = sorted(self._claims)
        really = self._inner.rename

        def rename(old: str, new: str, *, replace: bool = False) -> None:
            if new == last:
                raise StoreError("no")
            really(old, new, replace=replace)

        monkeypatch.setattr(self._inner, "rename", rename)
        assert names == ["disk-flat.vmdk", "disk.vmdk"]
        original(self, last)

    original = PartialStore.publish
    monkeypatch.setattr(PartialStore, "publish", failing)
    with pytest.raises(StoreError, match="no"):
        convert(source, target, to="vmfs", overwrite=overwrite)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["disk.vmdk"] if overwrite else [])
    if overwrite:
        assert digest(target, "monolithicSparse") == source.read_bytes()
