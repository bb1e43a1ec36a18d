"""Chunks as a host that breaks the protocol would send them: one transformation per fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vdkit.sim.nfc_faults import NfcFaults
from vdkit.wire.nfc import records
from vdkit.wire.nfc.codecs import Compression
from vdkit.wire.nfc.limits import MAX_PAYLOAD, MAX_TRAILER
from vdkit.wire.nfc.records import Io


class Chunk(NamedTuple):
    sequence: int
    head: Io
    data: memoryview


def spoiled(chunk: Chunk, asked: int, faults: NfcFaults) -> Iterator[tuple[bytes, memoryview]]:
    """Records to send in place of one chunk; ``asked`` is the compression that the client asked for."""
    sequence, head, data = chunk
    if faults.chunk_duplicate:
        yield records.encode_io(sequence, head), data
    if faults.stored_code_echoed and head.compression == Compression.NONE:
        head = head._replace(compression=asked)
    head, data = _spoil_head(head, data, faults)
    data = _spoil_data(data, head.length, faults)
    if faults.zlib_broken or faults.skipz_overrun or faults.skipz_truncated:
        code = Compression.ZLIB if faults.zlib_broken else Compression.SKIPZ
        head = head._replace(compression=code, wire=len(data))
    record = bytearray(records.encode_io(sequence, head))
    _spoil_record(record, sequence, faults)
    yield bytes(record), data


def _spoil_head(head: Io, data: memoryview, faults: NfcFaults) -> tuple[Io, memoryview]:
    if faults.chunk_status:
        head = head._replace(handle=faults.chunk_status)
    if faults.chunk_out_of_range:
        head = head._replace(start=head.total - head.length + 1)
    if faults.chunk_overlap and head.start:
        head = head._replace(start=head.start - 1)
    if faults.chunk_empty:
        head, data = head._replace(length=0, wire=0), data[:0]
    if faults.chunk_other_offset:
        head = head._replace(offset=head.offset + 512)
    if faults.chunk_other_total:
        head = head._replace(total=head.total + 512)
    if faults.chunk_code is not None:
        head = head._replace(compression=faults.chunk_code)
    if faults.wire_length_delta:
        head = head._replace(wire=head.wire + faults.wire_length_delta)
    if faults.wire_length_huge:
        head = head._replace(compression=Compression.ZLIB, wire=MAX_TRAILER + 1)
    return head, data


def _spoil_data(data: memoryview, length: int, faults: NfcFaults) -> memoryview:
    if faults.zlib_broken:
        return memoryview(b"\x78\x01 this is no deflate stream")
    first = length.to_bytes(4, "little") + bytes(4)
    if faults.skipz_overrun:
        # A segment of 4 bytes that begins 3 bytes before the end of the chunk.
        start = (length - 3).to_bytes(4, "little")
        return memoryview(first + start + (4).to_bytes(4, "little") + b"abcd")
    if faults.skipz_truncated:
        return memoryview(first + bytes(4) + (8).to_bytes(4, "little") + b"abc")
    return data


def _spoil_record(record: bytearray, sequence: int, faults: NfcFaults) -> None:
    if faults.bad_magic:
        record[0:4] = bytes.fromhex("a100da7a")
    if faults.wrong_opcode:
        record[4:8] = int(records.Opcode.RESPOOL).to_bytes(4, "little")
    if faults.payload_too_long:
        record[8:12] = (MAX_PAYLOAD + 1).to_bytes(4, "little")
    if faults.payload_too_short:
        record[8:12] = (records.IO_SIZE - 1).to_bytes(4, "little")
    if faults.wrong_sequence:
        record[12:16] = ((sequence + 1000) & 0xFFFFFFFF).to_bytes(4, "little")
