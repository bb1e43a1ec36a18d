"""The page on restoring without vdkit, run line by line on a repository of ours."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
from pathlib import Path

import pytest

from backuptools import VM
from vdkit.backup import (
    Decision,
    Method,
    Point,
    Repository,
    backup_disk,
    begin_point,
    content_sha256,
)
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "restore-without-vdkit.md"
MIB = 1 << 20
SIZE = 20 * MIB
#: Needs root and a kernel module.
NOT_HERE = ("modprobe", "umount")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Point, str]:
    (tmp_path / "repo").mkdir()
    repository = Repository.create(FolderStore(tmp_path / "repo"))
    disk = MemoryDevice(SIZE)
    disk.write_from(0, random.Random(3).randbytes(8 * MIB))
    points = []
    for ranges in (None, RangeSet([(MIB, MIB)]), RangeSet([(10 * MIB, MIB), (0, 512)])):
        for offset, length in ranges or ():
            disk.write_from(offset, random.Random(offset).randbytes(length))
        with begin_point(repository, VM) as writer:
            decision = Decision(Method.FULL if ranges is None else Method.CHANGES, "test")
            backup_disk(disk, writer, key=2000, label="d", decision=decision, ranges=ranges)
            points.append(writer.commit())
    return points[-1], content_sha256(disk)


def script_of(page: str, point: Point, repository: Path, target: Path) -> str:
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    wanted = [block for block in blocks if not block.startswith(NOT_HERE)]
    assert len(wanted) == len(blocks) - len(NOT_HERE)
    script = "\n".join(["set -euo pipefail", *wanted])
    script = re.sub(r"20260201T120000Z-deadbeef", point.id, script)
    script = re.sub(r"repo/\S+", str(repository / point.folder), script, count=1)
    return script.replace("/restore/", f"{target}/")


@pytest.mark.witness("jq", "qemu-img", "sha256sum", "bash")
def test_the_page_restores_the_disk(made: tuple[Point, str], tmp_path: Path) -> None:
    point, sha256 = made
    target = tmp_path / "restored"
    target.mkdir()
    done = subprocess.run(
        ["bash", "-c", script_of(PAGE.read_text(encoding="utf-8"), point, tmp_path / "repo", target)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == 6, "three points, a VMDK and a map each"
    assert hashlib.sha256((target / "disk.raw").read_bytes()).hexdigest() == sha256
    for name in ("disk.vmdk", "disk.qcow2"):
        raw = tmp_path / "check.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", target / name, raw], check=True, timeout=60)
        assert hashlib.sha256(raw.read_bytes()).hexdigest() == sha256
    assert json.loads(done.stdout[done.stdout.rindex('{\n  "key"') :])["capacity"] == SIZE
