"""Realistic test disks: an ext4 file system with the files of this system, made once and kept.

``mke2fs -d`` fills the file system, so that no mount and no root are needed. The image is a sparse file: what
the file system does not use is a hole.
"""

from __future__ import annotations

import os
import shutil
import stat
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
