"""What qemu makes has no findings, and qemu opens and agrees with what a repair makes."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from checktools import (
    CONTENT,
    GRAIN,
    SIZE,
    SPARSE_CASES,
    Case,
    Editor,
    good_sparse,
    good_stream,
    good_stream_tables_first,
)
from vdkit.block.local import FolderStore
from vdkit.vmdk import create_child, open_disk
from vdkit.vmdk.check import Severity, Verdict, check_disk, repair_disk

pytestmark = pytest.mark.witness("qemu-img")

#: What a check may note about qemu's disks; docs/explanation/check-and-repair.md says why.
NOTED = {"stream-end", "stream-short-grain", "cid-form"}
FORMS = [
    "monolithicSparse",
    "monolithicFlat",
    "streamOptimized",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
]


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def raw_of(folder: Path, data: bytes) -> Path:
    path = folder / "model.raw"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [40 * GRAIN, 40 * GRAIN + 5 * 512, 7 * 512, 70 * 512 * GRAIN + 512])
@pytest.mark.parametrize("form", FORMS)
def test_qemus_disks_are_clean(tmp_path: Path, form: str, size: int) -> None:
    dice = random.Random(size)
    raw = tmp_path / "model.raw"
    with raw.open("wb") as file:
        file.truncate(size)
        for _ in range(30):
            start = dice.randrange(size)
            os.pwrite(file.fileno(), dice.randbytes(min(size - start, 3 * GRAIN)), start)
    for options in (f"subformat={form}", f"subformat={form},zeroed_grain=on"):
        if "zeroed" in options and "Flat" in form:
            continue
        run("qemu-img", "convert", "-O", "vmdk", "-o", options, raw, tmp_path / "q.vmdk")
        report = check_disk(FolderStore(tmp_path), "q.vmdk", deep=True)
        assert report.verdict is Verdict.CLEAN
        assert {finding.kind for finding in report.findings} <= NOTED
        assert all(finding.severity is Severity.NOTE for finding in report.findings)
        assert not repair_disk(FolderStore(tmp_path), "q.vmdk", in_place=True).is_changed


def test_qemus_children_are_clean(tmp_path: Path) -> None:
    run("qemu-img", "create", "-q", "-f", "vmdk", tmp_path / "base.vmdk", str(SIZE))
    run(
        "qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "-o", "zeroed_grain=on",
        tmp_path / "child.vmdk",
    )  # fmt: skip
    run("qemu-io", "-f", "vmdk", "-c", "write -z 1M 1M", "-c", "write 3M 70k", tmp_path / "child.vmdk")
    report = check_disk(FolderStore(tmp_path), "child.vmdk")
    assert {finding.kind for finding in report.findings} <= NOTED
    assert report.verdict is Verdict.CLEAN


@pytest.mark.parametrize("case", SPARSE_CASES, ids=lambda case: case.name)
def test_qemu_agrees_with_a_repaired_disk(tmp_path: Path, case: Case) -> None:
    store = FolderStore(tmp_path)
    good_sparse(store)
    editor = Editor(store)
    case.damage(editor)
    editor.save()
    repair_disk(store, "disk.vmdk", target="new.vmdk")
    model = bytearray(CONTENT)
    for number in case.lost:
        end = min(SIZE, (number + 1) * GRAIN)
        model[number * GRAIN : end] = bytes(end - number * GRAIN)
    raw = raw_of(tmp_path, bytes(model))
    run("qemu-img", "check", tmp_path / "new.vmdk")
    assert json.loads(run("qemu-img", "info", "--output=json", tmp_path / "new.vmdk"))["virtual-size"] == SIZE
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, tmp_path / "new.vmdk")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("cut", [512, 3 * 512, 40 * 512])
def test_qemu_reads_a_repaired_stream(tmp_path: Path, first: bool, cut: int) -> None:
    store = FolderStore(tmp_path)
    (good_stream_tables_first if first else good_stream)(store)
    with store.open_writable("disk.vmdk") as file:
        file.resize(file.capacity + 1000 if cut == 512 else file.capacity - cut)
    report = check_disk(store, "disk.vmdk", deep=True)
    assert report.findings
    done = repair_disk(store, "disk.vmdk", target="new.vmdk", tidy=True, accept_loss=True)
    assert done.after.errors == 0
    model = bytearray(CONTENT)
    for start, length in done.lost:
        model[start : start + length] = bytes(length)
    raw = raw_of(tmp_path, bytes(model))
    run("qemu-img", "check", tmp_path / "new.vmdk")
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, tmp_path / "new.vmdk")


def test_qemu_reads_a_repaired_delta(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    good_sparse(store, "base.vmdk")
    create_child(store, "base.vmdk", "disk.vmdk")
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        disk.write_from(5 * GRAIN, b"x" * GRAIN)
    with store.open_writable("disk-delta.vmdk") as file:
        file.write_from(28, b"\x64\0\0\0")
    repair_disk(store, "disk.vmdk", target="new.vmdk")
    model = bytearray(CONTENT)
    model[5 * GRAIN : 6 * GRAIN] = b"x" * GRAIN
    run(
        "qemu-img",
        "compare",
        "-f",
        "raw",
        "-F",
        "vmdk",
        raw_of(tmp_path, bytes(model)),
        tmp_path / "new.vmdk",
    )
