"""Realistic test disks: an ext4 file system with the files of this system, made once and kept.

``mke2fs -d`` fills the file system, so that no mount and no root are needed. The image is a sparse file: what
the file system does not use is a hole.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import CACHE, need

GIB = 1 << 30
#: Virtual sizes in bytes, and how much of them is filled with files.
NORMAL = (4 * GIB, 1300 << 20)
QUICK = (1 * GIB, 320 << 20)
#: Where the files come from: programs, libraries, texts, headers: a mix that compresses as a real disk does.
SOURCES = ("/usr/include", "/usr/share/doc", "/usr/bin", "/usr/lib", "/usr/share")
#: One huge file must not be the whole disk.
MAX_FILE = 32 << 20
#: The random disk has its data in this many runs.
RANDOM_RUNS = 16
#: A chain as a month of daily snapshots leaves it: 12.5 MiB of changes a day.
LINKS = 32
GRAINS_OF_A_LINK = 200
GRAIN = 1 << 16
#: The largest disk of any VMware product, and how many grains of it hold something.
HUGE = 62 << 40
HUGE_GRAINS = 3000
#: Changed with the recipe, so that an old image is not taken for a new one.
_RECIPE = 1


def real_disk(*, quick: bool) -> Path:
    """A raw image with an ext4 file system; built on first use, later taken from the cache."""
    capacity, content = QUICK if quick else NORMAL
    image = CACHE / f"real-{capacity // GIB}g-{_RECIPE}.raw"
    if image.exists():
        return image
    need("mke2fs")
    CACHE.mkdir(parents=True, exist_ok=True)
    print(f"making {image.name}: {content >> 20} MiB of files in {capacity // GIB} GiB", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        stage = Path(folder) / "files"
        held = _stage(stage, content)
        if held < content // 2:
            raise SystemExit(f"{', '.join(SOURCES)} hold only {held >> 20} MiB, too little for a test disk")
        draft = Path(folder) / "draft.raw"
        with draft.open("wb") as file:
            file.truncate(capacity)
        subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", stage, draft],
            check=True,
            timeout=600,
        )
        draft.rename(image)
    return image


def incompressible_disk(*, quick: bool) -> Path:
    """A raw image with random bytes in half of it, in 16 runs."""
    capacity = (1 if quick else 2) * GIB
    image = CACHE / f"incompressible-{capacity // GIB}g.raw"
    if not image.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = image.with_suffix(".draft")
        with draft.open("wb") as file:
            file.truncate(capacity)
            for start in range(0, capacity, capacity // RANDOM_RUNS):
                file.seek(start)
                for _ in range(capacity // RANDOM_RUNS // 2 >> 20):
                    file.write(os.urandom(1 << 20))
        draft.rename(image)
    return image


def make_chain(folder: Path, base: Path) -> Path:
    """``base`` (raw) as a sparse disk and LINKS deltas on it, made by qemu; returns the leaf."""
    need("qemu-img", "qemu-io")
    dice = random.Random(LINKS)
    below = folder / "link-00.vmdk"
    _run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", base, below)
    grains = base.stat().st_size // GRAIN
    for number in range(1, LINKS):
        link = folder / f"link-{number:02}.vmdk"
        _run("qemu-img", "create", "-q", "-f", "vmdk", "-b", below.name, "-F", "vmdk", link)
        places = [dice.randrange(grains) * GRAIN for _ in range(GRAINS_OF_A_LINK)]
        script = "".join(f"write -q -P {number} {place} {GRAIN}\n" for place in places)
        _run("qemu-io", "-f", "vmdk", "-t", "unsafe", link, given=script)
        below = link
    return below


def make_huge(folder: Path, name: str = "big.vmdk") -> tuple[Path, int]:
    """A sparse disk of 62 TiB with all its grain tables, in a hole of the file, and HUGE_GRAINS grains over
    its whole length, made by qemu; returns its path and the offset of the last grain."""
    path = folder / name
    _run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicSparse", path, str(HUGE))
    pattern = folder / "pattern"
    pattern.write_bytes(b"grain".ljust(512, b"."))
    step = HUGE // HUGE_GRAINS // GRAIN * GRAIN
    offsets = [index * step for index in range(HUGE_GRAINS)]
    _run("qemu-io", "-f", "vmdk", path, given="".join(f"write -q -s {pattern} {at} 4096\n" for at in offsets))
    return path, offsets[-1]


def make_crowded(folder: Path, capacity: int, grains: int) -> Path:
    """A sparse disk made by qemu whose tables are then filled by hand: ``grains`` grains, all of them holes
    of the file, spread over all the tables; both copies of the tables agree."""
    path = folder / "crowded.vmdk"
    _run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicSparse", path, str(capacity))
    with path.open("r+b") as file:
        head = file.read(512)
        grain, entries = struct.unpack_from("<Q", head, 20)[0], struct.unpack_from("<I", head, 44)[0]
        copies, overhead = struct.unpack_from("<QQ", head, 48), struct.unpack_from("<Q", head, 64)[0]
        tables = -(-capacity // 512 // (grain * entries))
        used = grains // tables
        sector = overhead
        directories = []
        for place in copies:
            file.seek(place * 512)
            directories.append(struct.unpack(f"<{tables}I", file.read(tables * 4)))
        for index in range(tables):
            table = struct.pack(f"<{used}I", *range(sector, sector + used * grain, grain))
            for directory in directories:
                file.seek(directory[index] * 512)
                file.write(table)
            sector += used * grain
        file.truncate(sector * 512)
    return path


def _run(*command: str | Path, given: str | None = None) -> None:
    subprocess.run(command, input=given, text=True, check=True, timeout=900, stdout=subprocess.DEVNULL)


def allocated(path: Path) -> int:
    """Bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


def _files(source: str) -> Iterator[tuple[str, int]]:
    """``(path, size)`` of the regular files that can be read below a folder, in a fixed order."""
    for folder, names, files in os.walk(source):
        names.sort()
        for name in sorted(files):
            path = f"{folder}/{name}"
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE and os.access(path, os.R_OK):
                yield path, status.st_size


def _stage(stage: Path, content: int) -> int:
    """Copy files below ``stage``: ``content`` bytes, at most a third from each source."""
    held = 0
    for source in SOURCES:
        share = min(content // 3, content - held)
        for path, size in _files(source):
            target = Path(f"{stage}{path}")
            if size > share or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            share -= size
            held += size
            if share < MAX_FILE // 32:
                break
    return held
