"""``vdkit vmfs``: what it prints, what it copies, how it refuses; on images, and on a block device."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clitools import Vdkit
from vdkit.block.direct import DirectFile
from vdkit.disklib.lun import open_luns
from vdkit.testing.vmfsimage import VmfsImage
from vdkit.testing.vmfsmanifest import Manifest
from vmfsfixtures import MIB, VmfsOptions, read


@pytest.fixture
def vdkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Vdkit:
    monkeypatch.chdir(tmp_path)
    return Vdkit(monkeypatch)


def fill(image: VmfsImage) -> None:
    image.folder("vm")
    image.folder("vm/logs")
    image.small("vm/vm.vmx", b"config")
    image.small("vm/logs/vmware.log", b"l" * 5000)
    image.disk("vm/vm-flat.vmdk", 5 * MIB, "dzhdp" if image.options.six else "dzhdh")
    image.disk("vm/good-flat.vmdk", 3 * MIB + 512, "dhzd")
    text = (
        '# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType="vmfs"\n'
        'RW 6145 VMFS "good-flat.vmdk"\nddb.adapterType = "lsilogic"\n'
    )
    image.small("vm/good.vmdk", text.encode())
    image.symlink("vm/link", "vm.vmx")
    image.rdm("vm/rdm.vmdk", 1 << 40)


@pytest.fixture(params=[5, 6])
def luns(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Manifest]:
    folder = tmp_path / "luns"
    folder.mkdir()
    image, paths = VmfsImage.in_files(folder, VmfsOptions(request.param, members=(1, 1), table="gpt"))
    fill(image)
    manifest = image.finish()
    for device in image.devices:
        device.close()
    return ",".join(map(str, paths)), manifest


def test_ls(vdkit: Vdkit, luns: tuple[str, Manifest]) -> None:
    names, _ = luns
    told = vdkit("vmfs", "ls", names, "vm", "-R")
    assert told.code == 0
    assert [line.split()[-1] for line in told.text.splitlines()[1:]] == [
        "vm/good-flat.vmdk", "vm/good.vmdk", "vm/link", "vm/logs/", "vm/logs/vmware.log", "vm/rdm.vmdk",
        "vm/vm-flat.vmdk", "vm/vm.vmx",
    ]  # fmt: skip
    found = vdkit("vmfs", "ls", names, "--json").json
    assert (found["label"], [f["name"] for f in found["files"]]) == ("fixture", ["vm"])
    every = vdkit("vmfs", "ls", names, "-a", "--json").json
    assert ".fbb.sf" in [f["name"] for f in every["files"]]
    vdkit("vmfs", "ls", names, "no").failed(6, "[fixture] no: not there")
    vdkit("vmfs", "ls", names.split(",")[1]).failed(5, "has 2 members, 1 are here", "name all the LUNs")
    vdkit("vmfs", "ls", ",").failed(2, "names no LUN")
    vdkit("vmfs", "ls", "missing.img").failed(6, "missing.img")


def test_stat(vdkit: Vdkit, luns: tuple[str, Manifest]) -> None:
    names, _ = luns
    found = vdkit("vmfs", "stat", names, "vm/vm-flat.vmdk", "--check", "--json").json
    assert (found["size"], found["layout"], len(found["members"])) == (5 * MIB, "blocks", 2)
    assert found["check"]["problems"] == []
    assert sum(found["check"]["bytes"].values()) == 5 * MIB
    told = vdkit("vmfs", "stat", names, "vm/good-flat.vmdk", "--check")
    assert "check            4 runs: 1.0 MiB hole, 1.0 MiB zero, 1.0 MiB data; 0 problems" in told.text


def test_stat_tells_what_is_wrong(vdkit: Vdkit, luns: tuple[str, Manifest]) -> None:
    names, manifest = luns
    member, at = manifest.place(manifest.files["vm/good-flat.vmdk"].descriptor_at)
    base = 4096 if manifest.options.six else 512
    with Path(names.split(",")[member]).open("r+b") as file:
        file.seek(at + base + 0x24)
        file.write(b"\x09")
    done = vdkit("vmfs", "stat", names, "vm/good-flat.vmdk", "--check")
    done.failed(5, "counts 9 blocks as allocated, its map 3", "through the host")
    assert "1 problems" in done.text


def test_map(vdkit: Vdkit, luns: tuple[str, Manifest]) -> None:
    names, manifest = luns
    expected = manifest.files["vm/vm-flat.vmdk"]
    found = vdkit("vmfs", "map", names, "vm/vm-flat.vmdk", "--json").json
    assert [(r["offset"], r["length"], r["state"]) for r in found["runs"]] == [
        (run.offset, run.length, run.state) for run in expected.runs()
    ]
    first = found["runs"][0]
    with Path(first["lun"]).open("rb") as file:
        file.seek(first["lun_offset"])
        assert file.read(MIB) == expected.read(0, MIB)
    text = vdkit("vmfs", "map", names, "vm/vm-flat.vmdk").text.splitlines()
    assert len(text) == 1 + len(expected.runs())
    assert text[1].split()[:3] == ["0", str(MIB), "data"]
    vdkit("vmfs", "map", names, "vm/rdm.vmdk").failed(5, "no blocks to map")


def test_cp(vdkit: Vdkit, luns: tuple[str, Manifest]) -> None:
    names, manifest = luns
    done = vdkit("vmfs", "cp", names, "vm/good-flat.vmdk", "out.img", "--json")
    assert (done.code, done.last["size"]) == (0, 3 * MIB + 512)
    copied = Path("out.img").read_bytes()
    assert hashlib.sha256(copied).hexdigest() == manifest.files["vm/good-flat.vmdk"].sha256()
    vdkit("vmfs", "cp", names, "vm/good-flat.vmdk", "out.img").failed(6, "out.img")
    assert vdkit("vmfs", "cp", names, "vm/link", "link").code == 0
    assert Path("link").read_bytes() == b"config"
    assert vdkit("vmfs", "cp", names, "vm/good.vmdk", "disk.raw", "--disk", "-t", "raw").code == 0
    assert Path("disk.raw").read_bytes() == copied
    vdkit("vmfs", "cp", names, "vm/rdm.vmdk", "r").failed(2, "raw device mapping")
    vdkit("vmfs", "cp", names, "vm", "d", "--disk", "-r").failed(2, "give one of them")
    vdkit("vmfs", "cp", names, "vm/vm.vmx", "d", "-r").failed(2, "wants a folder")
    if manifest.options.six:
        vdkit("vmfs", "cp", names, "vm/vm-flat.vmdk", "p.img").failed(2, "only a host can tell")
        assert not Path("p.img").exists()


def test_cp_of_a_folder(vdkit: Vdkit, luns: tuple[str, Manifest]) -> None:
    names, _ = luns
    done = vdkit("vmfs", "cp", names, "vm/logs", "logs", "-r", "--json")
    assert (done.code, done.last["size"]) == (0, 5000)
    assert Path("logs/vmware.log").read_bytes() == b"l" * 5000
    vdkit("vmfs", "cp", names, "vm/logs", "logs", "-r").failed(6, "logs", "exists already")
    assert vdkit("vmfs", "cp", names, "vm/logs", "logs", "-r", "--overwrite").code == 0
    everything = vdkit("vmfs", "cp", names, "", "all", "-r")
    if everything.code == 0:  # the partly zeroed disk of VMFS-6 ends it
        assert sorted(p.name for p in Path("all/vm").iterdir()) == [
            "good-flat.vmdk", "good.vmdk", "logs", "vm-flat.vmdk", "vm.vmx"
        ]  # fmt: skip
        assert "vm/link: left out" in everything.err and "vm/rdm.vmdk: left out" in everything.err
    else:
        everything.failed(2, "only a host can tell")


@pytest.fixture
def loops(luns: tuple[str, Manifest]) -> Iterator[list[Path]]:
    """The images as block devices, where this machine lets us make them."""
    tool = shutil.which("losetup")
    if tool is None or os.geteuid() != 0:
        pytest.skip("making a block device takes losetup and root")
    made: list[Path] = []
    try:
        for image in luns[0].split(","):
            command = [tool, "--find", "--show", "--read-only", image]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            if done.returncode != 0:
                pytest.skip(f"no loop device here: {done.stderr.strip()}")
            made.append(Path(done.stdout.strip()))
        yield made
    finally:
        for device in made:
            subprocess.run([tool, "--detach", str(device)], timeout=30, check=True)


def test_block_devices_are_read_past_the_page_cache(
    vdkit: Vdkit, luns: tuple[str, Manifest], loops: list[Path]
) -> None:
    with open_luns(loops) as volume:
        inner = volume.device.members[0].device
        assert isinstance(getattr(inner, "_inner", inner), DirectFile)
        expected = luns[1].files["vm/good-flat.vmdk"]
        with volume.file(volume.resolve("vm/good-flat.vmdk"), "f") as device:
            assert read(device, 0, device.capacity) == expected.read(0, expected.length)
            assert read(device, 4095, 3) == expected.read(4095, 3)
    done = vdkit("vmfs", "cp", ",".join(map(str, loops)), "vm/good-flat.vmdk", "out.img")
    assert done.code == 0
    assert hashlib.sha256(Path("out.img").read_bytes()).hexdigest() == expected.sha256()
