"""One writer per VM, and dead writers do not stand in the way."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vdkit.backup import lock as locks
from vdkit.backup.document import write_object
from vdkit.backup.lock import Owner
from vdkit.backup.names import LOCK_FILE
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.errors import ExitCode, OutsideStore, RepositoryLocked


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return FolderStore(tmp_path) if request.param == "folder" else MemoryStore()


def test_a_live_holder_keeps_others_out_and_is_named(store: Store) -> None:
    notices: list[str] = []
    held = locks.acquire(store, notices.append)
    with pytest.raises(RepositoryLocked, match=r"held by process \d+ on .* since 20") as caught:
        locks.acquire(store, notices.append)
    assert caught.value.exit_code == ExitCode.LOCKED
    assert caught.value.retryable
    held.release()
    held.release()
    locks.acquire(store, notices.append).release()
    assert notices == []


def _dead_owner() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait(timeout=60)
    return replace(Owner.me(), pid=process.pid, token="dead")


@pytest.mark.parametrize("death", ["process", "id reused", "machine rebooted"])
def test_the_lock_of_a_dead_holder_is_taken_over_with_a_notice(store: Store, death: str) -> None:
    me = Owner.me()
    owner = {
        "process": _dead_owner(),
        "id reused": replace(me, started="1"),
        "machine rebooted": replace(me, boot="another"),
    }[death]
    write_object(store, LOCK_FILE, owner.encode())
    notices: list[str] = []
    held = locks.acquire(store, notices.append)
    assert len(notices) == 1
    assert f"process {owner.pid}" in notices[0]
    with pytest.raises(RepositoryLocked):
        locks.acquire(store, notices.append)
    held.release()


def test_a_holder_on_another_machine_is_believed() -> None:
    store = MemoryStore()
    write_object(store, LOCK_FILE, replace(Owner.me(), host="elsewhere").encode())
    with pytest.raises(
        RepositoryLocked, match=r"elsewhere.*if it is certain that it has, remove memory/lock"
    ):
        locks.acquire(store, print)


def test_a_lock_nobody_can_read_is_believed_too() -> None:
    store = MemoryStore()
    write_object(store, LOCK_FILE, b"?")
    with pytest.raises(RepositoryLocked, match="an unknown process"):
        locks.acquire(store, print)


def test_a_release_leaves_nothing_in_a_plain_store() -> None:
    store = MemoryStore()
    locks.acquire(store, print).release()
    assert store.list() == []


def test_a_lock_pushed_aside_by_a_quicker_rival_is_given_back() -> None:
    store = MemoryStore()
    stale, rival, me = _dead_owner(), replace(Owner.me(), token="rival"), Owner.me()
    write_object(store, LOCK_FILE, rival.encode())
    assert not locks._push_aside(store, stale, me)
    assert store.list() == [LOCK_FILE]


def test_a_killed_process_frees_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys; from vdkit.backup import lock; from vdkit.block.local import FolderStore\n"
        "lock.acquire(FolderStore(sys.argv[1]), print); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RepositoryLocked, match=f"process {process.pid}"):
            locks.acquire(FolderStore(tmp_path), print)
        process.kill()
        process.wait(timeout=60)
    notices: list[str] = []
    locks.acquire(FolderStore(tmp_path), notices.append).release()
    assert len(notices) == 1


def test_a_file_system_without_flock_is_locked_by_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = FolderStore(tmp_path)
    held = locks.acquire(store, print)
    with pytest.raises(RepositoryLocked, match="remove"):
        locks.acquire(store, print)
    held.release()
    locks.acquire(store, print).release()
    assert store.list() == []


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(OutsideStore, match="not followed"):
        locks.acquire(FolderStore(tmp_path), print)
    assert not (tmp_path / "victim").exists()
