"""Disk images that others made, fetched from packages and kept in ``.cache/samples``.

Debian's source package of qemu carries the sample images of its test suite: one exported by an ESXi host, and
one with a header from a fuzzer. apt fetches it from where this system's own sources say; images are taken as
data, by their hash, and nothing else is unpacked. Under CI a sample that cannot be fetched is a failure,
elsewhere a skip.
"""

from __future__ import annotations

import bz2
import hashlib
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "samples"
#: Of any version: the images in it are the same, and are known by their hashes.
SOURCE = "qemu"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Sample(NamedTuple):
    """``member`` is the end of its name in the source package; the hash is of the unpacked image."""

    member: str
    sha256: str


SAMPLES = {
    "iotest-version3.vmdk": Sample(
        "tests/qemu-iotests/sample_images/iotest-version3.vmdk.bz2",
        "0b67f248809938335a6f9375a8a76b3079f7c7e355df2837d5e05c9b45aaad5c",
    ),
    "afl9.vmdk": Sample(
        "tests/qemu-iotests/sample_images/afl9.vmdk.bz2",
        "71996b27606bda1c6ae0c3294595b03d8ab896923688632fe254a127b4f651e4",
    ),
}
#: An image is at most this large.
_MAX_IMAGE = 64 << 20


def sample(name: str) -> Path:
    """The image, fetched if it is not there yet."""
    path = CACHE / name
    if path.exists() and _digest(path) == SAMPLES[name].sha256:
        return path
    try:
        _fetch()
    except (OSError, subprocess.SubprocessError, tarfile.TarError, ValueError) as error:
        told = getattr(error, "stderr", None) or error
        if isinstance(told, bytes):
            told = told.decode(errors="replace")[-500:]
        reason = f"the sample {name} cannot be fetched from Debian's source package {SOURCE}: {told}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tar = _source_package(Path(folder))
        with tarfile.open(tar) as archive:
            for member in archive:
                for name, wanted in SAMPLES.items():
                    if member.isfile() and member.name.endswith("/" + wanted.member):
                        stream = archive.extractfile(member)
                        assert stream is not None
                        _keep(name, bz2.BZ2Decompressor().decompress(stream.read(), _MAX_IMAGE))
    missing = [name for name in SAMPLES if not (CACHE / name).exists()]
    if missing:
        raise ValueError(f"it does not hold {', '.join(missing)}")


def _keep(name: str, data: bytes) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != SAMPLES[name].sha256:
        raise ValueError(f"{name} has hash {found}")
    with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as file:
        file.write(data)
    Path(file.name).rename(CACHE / name)


def _source_package(folder: Path) -> Path:
    """Downloads the upstream archive of :data:`SOURCE`, by apt with lists of its own: the system's are left
    as they are, and need not name source packages.
    """
    (folder / "lists" / "partial").mkdir(parents=True)
    options = [
        "-o", f"Dir::Etc::SourceList={_source_list(folder)}",
        "-o", "Dir::Etc::SourceParts=-",
        "-o", f"Dir::State::Lists={folder / 'lists'}",
        "-o", "Acquire::Languages=none",
        "-o", "APT::Sandbox::User=",
    ]  # fmt: skip
    for command in (["update", "-qq"], ["source", "-qq", "--download-only", "--tar-only", SOURCE]):
        subprocess.run(
            ["apt-get", *options, *command], cwd=folder, check=True, capture_output=True, timeout=150
        )
    found = [path for path in folder.glob("*.orig.tar.*") if path.suffix != ".asc"]
    if len(found) != 1:
        raise ValueError(f"apt left {len(found)} archives")
    return found[0]


def _source_list(folder: Path) -> Path:
    """The distribution's own archives, where apt has them already, as sources of source packages."""
    asked = "$(SITE) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", asked, "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = []
    for line in told.stdout.splitlines():
        site, release, component, origin = line.split()
        if (component, origin) == ("main", "Debian"):
            lines.append(f"deb-src [signed-by={KEYS}] {site} {release} main")
    if not lines:
        raise ValueError("apt is not set up with an archive of Debian")
    path = folder / "wanted.list"
    path.write_text("\n".join(lines) + "\n")
    return path
