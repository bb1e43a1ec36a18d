"""Interruptions and failures at the worst moment leave no worker at work and no half a file."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vdkit.block.file import FileDevice
from vdkit.block.local import FolderStore
from vdkit.block.workers import WorkerScope
from vdkit.errors import StoreError
from vdkit.vmdk import StreamWriter


def test_a_worker_that_had_begun_when_its_start_was_interrupted_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = threading.Event()
    ended: list[str] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        assert begun.wait(30)
        raise KeyboardInterrupt

    def work(scope: WorkerScope) -> None:
        begun.set()
        scope.token.wait(30)
        ended.append("work")

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), WorkerScope("test") as scope:
        scope.spawn(work, scope)
    assert ended == ["work"]


def test_a_worker_that_could_not_be_started_does_nothing_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []
    done: list[str] = []
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        threads.append(thread)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError), WorkerScope("test") as scope:
        scope.spawn(done.append, "work")
    # Interrupted before the thread began, but it begins all the same, later.
    start(threads[0])
    threads[0].join()
    assert not done


def test_a_stream_given_up_is_removed_even_if_its_file_cannot_be_closed_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = FileDevice._close

    def failing(device: FileDevice) -> None:
        close(device)
        raise StoreError(f"{device.name}: closing: no space left on device")

    monkeypatch.setattr(FileDevice, "_close", failing)
    with pytest.raises(KeyboardInterrupt), StreamWriter(FolderStore(tmp_path), "a.vmdk", 1 << 20):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
