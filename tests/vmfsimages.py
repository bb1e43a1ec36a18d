"""Images of real VMFS volumes: the test data of dissect.vmfs, from its source package, kept in ``.cache``.

pip fetches the package from where this system's settings say; only its images are unpacked. They belong to
an AGPL package and are neither committed nor shipped. Under CI images that cannot be had are a failure,
elsewhere a skip.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from vdkit.vmfs import FileType, Volume
from vdkit.vmfs.descriptor import Descriptor

PACKAGE = "dissect.vmfs==3.13"
CACHE = Path(__file__).parents[1] / ".cache" / "vmfs-images"
_DATA = "/tests/_data/"
_CHUNK = 1 << 20
#: An image is at most this large, holes and all.
_MAX_IMAGE = 4 << 30

#: One volume each, by the names of its images.
VOLUMES = {
    "vmfs5": ("vmfs/vmfs5.bin",),
    "vmfs6": ("vmfs/vmfs6.bin",),
    "zero5": ("vmfs/zero5.bin",),
    "zero6": ("vmfs/zero6.bin",),
    "vmfs5l": ("vmfs/vmfs5l.bin",),
    "vmfs6l": ("vmfs/vmfs6l.bin",),
    "vmfs5d": ("vmfs/vmfs5d.bin",),
    "vmfs5ld": ("vmfs/vmfs5ld.bin",),
    "vmfs6d": ("vmfs/vmfs6d.bin",),
    "vmfs6ld": ("vmfs/vmfs6ld.bin",),
    "vmfs5-no-dense-sbpc": ("vmfs/vmfs5-no-dense-sbpc.bin",),
    "vmfs5-resource-optimized": ("vmfs/vmfs5-resource-optimized.bin",),
    "vmfs6-resource-optimized": ("vmfs/vmfs6-resource-optimized.bin",),
    "vmfs5-span": ("vmfs/span/vmfs5-span-0.bin", "vmfs/span/vmfs5-span-1.bin"),
    "vmfs6-span": ("vmfs/span/vmfs6-span-0.bin", "vmfs/span/vmfs6-span-1.bin"),
}


def image(name: str) -> Path:
    """An image, unpacked if it is not there yet."""
    path = CACHE / name
    if path.exists():
        return path
    packed = CACHE / f"{name}.gz"
    if not packed.exists():
        _fetch()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(packed) as source, tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as target:
        size = 0
        while data := source.read(_CHUNK):
            if data.count(0) == len(data):
                target.seek(len(data), os.SEEK_CUR)
            else:
                target.write(data)
            size += len(data)
            assert size <= _MAX_IMAGE
        target.truncate(size)
    Path(target.name).rename(path)
    return path


def images(volume: str) -> list[Path]:
    return [image(name) for name in VOLUMES[volume]]


def walk(volume: Volume, start: Descriptor | None = None, path: str = "") -> list[tuple[str, Descriptor]]:
    """Everything below a folder."""
    found = []
    for entry in volume.entries(start or volume.resolve(""), path):
        name = f"{path}/{entry.name}" if path else entry.name
        descriptor = volume.descriptor(entry.address, name, entry.generation)
        found.append((name, descriptor))
        if descriptor.type is FileType.DIRECTORY:
            found += walk(volume, descriptor, name)
    return found


def _fetch() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
            subprocess.run(
                [*command, "-d", folder, PACKAGE], check=True, capture_output=True, text=True, timeout=300
            )
            (archive,) = Path(folder).glob("*.tar.gz")
            _unpack(archive)
    except (OSError, subprocess.SubprocessError, tarfile.TarError, ValueError) as error:
        reason = f"the images of {PACKAGE} cannot be fetched: {getattr(error, 'stderr', None) or error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def _unpack(archive: Path) -> None:
    """The images, still compressed, and nothing else."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, data, name = member.name.partition(_DATA)
            if not data or not member.isfile() or not name.endswith(".gz") or ".." in name.split("/"):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            target = CACHE / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(stream, file)
