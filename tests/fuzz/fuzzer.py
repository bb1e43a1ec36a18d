#!/usr/bin/env python3
"""Runs one fuzz target under atheris; ``scripts/fuzz`` calls it.

    FUZZ_TARGET=NAME fuzzer.py FOLDER... [options of libFuzzer]

The first folder takes what is found; all are read. With ``-set_cover_merge=1`` it takes the few inputs that
reach what all of them reach. The target is named in the environment, because libFuzzer runs this file again
with options of its own when it merges.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

with atheris.instrument_imports(include=["vdkit.vmdk", "vdkit.block", "vdkit.wire.nfc", "vdkit.vmfs"]):
    import targets


def main(arguments: list[str]) -> int:
    name = os.environ["FUZZ_TARGET"]
    first, *rest = arguments
    if not any("merge" in option for option in rest):
        for seed in targets.seeds()[name]:
            (Path(first) / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    limits = [f"-max_len={targets.MAX_INPUT}", "-timeout=25", "-rss_limit_mb=1024", "-malloc_limit_mb=256"]
    atheris.Setup([sys.argv[0], first, *limits, *rest], targets.TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
