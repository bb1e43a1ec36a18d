"""Volumes of our own formatter, read by dissect.vmfs and by vmfs-tools: what the manifest says is there.

vmfs-tools are not asked where they are known to be wrong: blocks to be zeroed and two levels on VMFS-6, two
levels and descriptors behind pointer blocks on VMFS-5, what follows a hole.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from io import RawIOBase
from pathlib import Path

import pytest

from vdkit.testing.vmfsimage import VmfsImage
from vdkit.testing.vmfsmanifest import Manifest
from vmfsfixtures import MIB, VmfsOptions

OPTIONS = {
    "5": VmfsOptions(5),
    "6": VmfsOptions(6, members=(5,)),
    "5-span": VmfsOptions(5, members=(1, 2, 1), table="gpt"),
    "6-span": VmfsOptions(6, members=(1, 3, 2), table="gpt4k", indirect=True),
    "5-not-dense": VmfsOptions(5, table="mbr", dense=False, block_size=MIB // 2),
    "5-indirect": VmfsOptions(5, indirect=True),
    "6-bare": VmfsOptions(6, managed=False),
}


def fill(image: VmfsImage) -> None:
    block = image.options.block_size
    image.folder("vm")
    image.folder("vm/deep")
    image.small("resident", b"r" * 1000)
    image.small("sub", b"s" * 5000)
    image.disk("vm/mixed", 8 * block + 1536, "dzhcddzhd")
    image.disk("vm/shuffled", 20 * block, "d" * 20, order="shuffled")
    image.disk("vm/apart", 20 * block + 1, "d" * 21, order="apart")
    image.disk("vm/far", 300 * MIB, dict.fromkeys(range(12), "d") | {299: "z"})
    image.disk("vm/two-levels", 42 << 40, {(117 << 30) // block: "d", 5: "d"})
    if image.options.six and sum(image.options.members) * 256 >= 1024:
        image.disk("vm/large", 700 * MIB, {0: "d", 511: "d", 512: "d", 690: "z"}, large=(0,))
    image.symlink("link", "vm/mixed")
    image.rdm("rdm.vmdk", 1 << 40)
    for i in range(150):
        image.small(f"vm/deep/file{i}", b"File %d" % i)
    for name in ("ajVm", "alBt", "am7G", "f\u00fcnf \u96ea"):
        image.small(f"vm/deep/{name}", name.encode())


class Part(RawIOBase):
    """A partition as a file of its own: the witness looks for none."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._file = path.open("rb")
        self._start, self._length, self._at = start, length, 0

    def close(self) -> None:
        self._file.close()
        super().close()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def formatted(
    folder: Path, options: VmfsOptions, build: Callable[[VmfsImage], None]
) -> tuple[Manifest, list[Path]]:
    image, paths = VmfsImage.in_files(folder, options)
    build(image)
    manifest = image.finish()
    for device in image.devices:
        device.close()
    return manifest, paths


@pytest.mark.witness("dissect.vmfs")
@pytest.mark.parametrize("name", OPTIONS)
def test_dissect_reads_what_the_manifest_says(name: str, tmp_path: Path) -> None:
    from dissect.vmfs import lvm, vmfs

    options = OPTIONS[name]
    manifest, paths = formatted(tmp_path, options, fill)
    with ExitStack() as stack:
        parts = [
            stack.enter_context(Part(path, options.start, options.partition_size(i)))
            for i, path in enumerate(paths)
        ]
        theirs = vmfs.VMFS(lvm.LVM(parts).volumes[0].open() if options.managed else parts[0])
        assert theirs.label == options.label
        for path, expected in manifest.files.items():
            other = theirs.get(f"/{path}")
            if expected.type == 2:
                names = {entry.name for entry in other.iterdir()} - {".", ".."}
                assert names == {p.rpartition("/")[2] for p in manifest.files if p.rpartition("/")[0] == path}
                continue
            assert other.size == expected.length, path
            assert other.is_rdm() == (expected.type == 6), path
            if expected.type not in (3, 4):
                continue
            stream = other.open()
            for offset, data in expected.pieces():
                stream.seek(offset)
                assert stream.read(len(data)) == data, f"{path} at {offset}"
            for run in expected.runs() if expected.block_size else ():
                if run.state == "hole":
                    stream.seek(run.offset)
                    assert not any(stream.read(min(run.length, MIB))), f"{path} at {run.offset}"


@pytest.mark.parametrize(
    ("version", "tool"),
    [
        pytest.param(5, "debugvmfs", marks=pytest.mark.witness("debugvmfs")),
        pytest.param(6, "debugvmfs6", marks=pytest.mark.witness("debugvmfs6")),
    ],
)
def test_vmfs_tools_read_what_the_manifest_says(version: int, tool: str, tmp_path: Path) -> None:
    manifest, (path,) = formatted(tmp_path, VmfsOptions(version), fill)  # type: ignore[arg-type]

    def run(*arguments: str) -> bytes:
        command = [tool, str(path), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        return done.removeprefix(b"VMFS version: 6\n")  # it talks before the data

    wanted = [
        "resident",
        "sub",
        "vm/shuffled",
        "vm/apart",
        "vm/deep/file7",
        "vm/deep/file149",
        "vm/deep/alBt",
    ]
    if version == 5:
        wanted.append("vm/mixed")
    for name in wanted:
        expected = manifest.files[name]
        assert run("cat", f"/{name}") == expected.read(0, expected.length), name
    told = {line.strip() for line in run("ls", "/vm/deep").decode().splitlines()}
    assert {p.rpartition("/")[2] for p in manifest.files if p.startswith("vm/deep/")} <= told
