"""Files of any blocks in any state, on any volume: read back equal, mapped exactly."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdkit.errors import NotSupported
from vdkit.vmfs import VmfsStore, check_file
from vmfsfixtures import Fixture, VmfsOptions, read

BLOCK = 1 << 16
MEMBERS = st.sampled_from([(1,), (1, 1)])


@st.composite
def volumes(draw: st.DrawFn) -> tuple[VmfsOptions, list[dict[str, Any]]]:
    version = draw(st.sampled_from([5, 6]))
    options = VmfsOptions(
        version=version,  # type: ignore[arg-type]
        members=draw(MEMBERS),
        table=draw(st.sampled_from(["none", "mbr", "gpt", "gpt4k"])),
        # Only VMFS-5 has had other sizes of blocks.
        block_size=1 << 20 if version == 6 else draw(st.sampled_from([1 << 19, 1 << 20])),
        indirect=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    files = []
    for _ in range(draw(st.integers(1, 3))):
        states = draw(st.text(alphabet="dDzhcp" if version == 6 else "dDzhc", min_size=1, max_size=12))
        files.append(
            {
                "states": states,
                "cut": draw(st.sampled_from([0, 1, 511, 512, options.block_size - 1])),
                "order": draw(st.sampled_from(["straight", "apart", "shuffled"])),
                "levels": draw(st.sampled_from([None, 1, 2])),
                "tail": draw(st.integers(0, 100)),
            }
        )
    return options, files


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(volumes(), st.data())
def test_any_file_reads_back_and_its_map_covers_it(
    made: tuple[VmfsOptions, list[dict[str, Any]]], data: st.DataObject
) -> None:
    options, files = made

    def fill(image: Any) -> None:
        for number, file in enumerate(files):
            count = len(file["states"]) + file["tail"]  # holes behind, so that whole tables are walked too
            image.disk(
                f"f{number}",
                count * options.block_size - file["cut"],
                file["states"],
                order=file["order"],
                levels=file["levels"],
                content=lambda i: bytes([i % 251 + 1]) * 700,  # the rest of the block is stale
            )

    fixture = Fixture(options, fill)
    luns = {device.name: device for device in fixture.image.devices}
    with fixture.open() as volume:
        for path, expected in fixture.manifest.files.items():
            descriptor = volume.resolve(path)
            assert check_file(volume, descriptor, path).problems == ()
            blocks = volume.blocks(descriptor, path)
            runs = list(blocks.runs(0, descriptor.length))
            assert [(r.offset, r.length, r.state.value, r.volume_offset, r.shared) for r in runs] == [
                tuple(run) for run in expected.runs()
            ]
            assert sum(run.length for run in runs) == descriptor.length
            start = data.draw(st.integers(0, descriptor.length - 1))
            length = min(data.draw(st.integers(1, 3 * options.block_size)), descriptor.length - start)
            with VmfsStore(volume).open(path) as device:
                if any(run.state.value == "partial" for run in blocks.runs(start, length)):
                    try:
                        read(device, start, length)
                    except NotSupported:
                        continue
                    raise AssertionError("a block that is partly to be zeroed was read")
                assert read(device, start, length) == expected.read(start, length)
            for run in blocks.runs(start, length):
                if run.state.value == "data" and run.volume_offset is not None:
                    pieces = volume.device.places(run.volume_offset, run.length)
                    found = b"".join(read(luns[lun], at, size) for lun, at, size in pieces)
                    assert found == expected.read(run.offset, run.length)
