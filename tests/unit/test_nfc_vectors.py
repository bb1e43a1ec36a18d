"""Every vector of the specification, both ways: we write these bytes, and read these fields from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vdkit.errors import ProtocolError
from vdkit.net.trust import sha1_thumbprint, sha256_thumbprint
from vdkit.wire.nfc import classic, codecs, dialogue, handshake, records
from vdkit.wire.nfc.assembly import check_status
from vdkit.wire.nfc.classic import FilePut, FileType, PutFlag, Run
from vdkit.wire.nfc.greeting import build_greeting, parse_greeting
from vdkit.wire.nfc.handshake import Message
from vdkit.wire.nfc.records import ErrorHead, Io, MapRequest, OpenReply

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "nfc-vectors.json").read_text())
H = 0xFFFFFFFF80002A1F
TAG = "ABCDEFGHIJKLMNOP"
PATH = "[datastore1] vm/vm.vmdk"
DENIED = "NfcAioProcessOpenFileMsg: permission check failed for file '[ds] a.vmdk', access = 1"
OPEN_25 = OpenReply(0, H, 2, 0x1E, 25 << 30, 512, 3263, 255, 63)
OPEN_16 = OpenReply(0, 0x1234, 2, 0x1E, 16 << 30, 512, 2088, 255, 63)
READ_1M = 0x100100200
ZERO_RUN = classic.encode_runs([Run(0x7FFF, None)])
ENTRIES = [("adapterType", "lsilogic")]


def blob(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name]["hex"])


def payload(name: str) -> bytes:
    data = blob(name)
    return data[16 : 16 + int.from_bytes(data[8:12], "little")]


ENCODED: dict[str, Callable[[], bytes]] = {
    "greeting_esxi8": build_greeting,
    "greeting_esxi6x": lambda: build_greeting(sha256=False),
    "dlg_session": lambda: dialogue.session_line("ticket-0"),
    "dlg_banner": lambda: dialogue.BANNER,
    "dlg_thumb": lambda: dialogue.thumbprint_line(TAG),
    "dlg_thumb_plain": lambda: dialogue.thumbprint_line("PlainText"),
    "dlg_proxy_nfc": lambda: dialogue.proxy_line(dialogue.proxy_service("nfc", tls=False)),
    "dlg_proxy_nfcssl": lambda: dialogue.proxy_line(dialogue.proxy_service("nfc", tls=True)),
    "dlg_proxy_vpxa-nfc": lambda: dialogue.proxy_line(dialogue.proxy_service("vpxa-nfc", tls=False)),
    "dlg_proxy_vpxa-nfcssl": lambda: dialogue.proxy_line(dialogue.proxy_service("vpxa-nfc", tls=True)),
    "dlg_connect_ssl": lambda: dialogue.connect_line(tls=True),
    "dlg_connect_clear": lambda: dialogue.connect_line(tls=False),
    "hs_43_tag": lambda: handshake.build_tag(TAG),
    "hs_43_plaintext": lambda: handshake.build_tag("PlainText"),
    "hs_33": handshake.build_probe,
    "hs_51_client_v": lambda: handshake.build_version(*handshake.CLIENT_VERSION),
    "hs_51_client_vddk8": lambda: handshake.build_version(11),
    "hs_36_ack": handshake.build_probe_reply,
    "hs_51_host703": lambda: handshake.build_version(handshake.HOST_VERSION_7),
    "hs_51_host8": lambda: handshake.build_version(handshake.HOST_VERSION_8),
    "hs_54_vectura": lambda: handshake.build_name("vectura"),
    "hs_54_vddk": lambda: handshake.build_name("vddk"),
    "hs_55": handshake.build_features,
    "hs_52": handshake.build_ready,
    "hs_4": handshake.build_session_complete,
    "rec_hello_v": lambda: records.encode_hello(0),
    "rec_hello_64k_x1": lambda: records.encode_hello(0, 65536, 1),
    "rec_hello_2m_x4": lambda: records.encode_hello(0, 2 << 20, 4),
    "rec_sockopts": lambda: records.encode_sockopts(1),
    "rec_sockopts_reply_8": lambda: records.encode_sockopts(1, 1675000, 1675000, 1),
    "rec_respool": lambda: records.encode_respool(2),
    "rec_open_ro": lambda: records.encode_open(3, PATH),
    "rec_open_rw": lambda: records.encode_open(3, PATH, writable=True),
    "rec_open_reply_25GiB_ro": lambda: records.encode_open_reply(3, OPEN_25),
    "rec_open_reply_16GiB": lambda: records.encode_open_reply(3, OPEN_16),
    "rec_error_11": lambda: records.encode_error(7, 11, DENIED),
    "rec_open_refused_tail": lambda: records.record(4, 7, bytes(60)),
    "rec_read_1MiB_none": lambda: records.encode_read(4, H, READ_1M, 1 << 20),
    "rec_read_1MiB_skipz": lambda: records.encode_read(4, H, READ_1M, 1 << 20, 3),
    "rec_read_129s": lambda: records.encode_read(0x12, 0x1234, 0, 66048),
    "rec_read_129s_frag0_hdr": lambda: records.encode_io(0x12, Io(0, 1, 0, 0, 66048, 0, 65536, 65536)),
    "rec_read_129s_frag1_hdr": lambda: records.encode_io(0x12, Io(0, 1, 0, 0, 66048, 65536, 512, 512)),
    "rec_read_reply_status3": lambda: records.encode_io(
        0, Io(3, 1, 3, READ_1M, 1 << 20, 0x30000, 0x10000, 0xFFFF)
    )[16:],
    "rec_chunk_abc": lambda: records.encode_io(3, Io(0, 1, 0, 4096, 1024, 512, 3, 3)) + b"abc",
    "rec_write_1s_hdr": lambda: records.encode_io(5, Io(0x1234, 0, 0, 0, 512, 0, 512, 512)),
    "rec_write_129s_frag0_hdr": lambda: records.encode_io(14, Io(0x1234, 0, 0, 0, 66048, 0, 65536, 65536)),
    "rec_write_129s_frag1_hdr": lambda: records.encode_io(14, Io(0x1234, 0, 0, 0, 66048, 65536, 512, 512)),
    "rec_write_129s_ack": lambda: records.encode_io(14, Io(0, 0, 0, 0, 66048, 0, 66048, 0)),
    "rec_close_16": lambda: records.encode_close(5, 0x0102030405060708),
    "rec_close_8": lambda: records.encode_close(5, 0x1234, short=True),
    "rec_end_16": lambda: records.encode_end(6),
    "rec_end_4": lambda: records.encode_end(6, short=True),
    "rec_ddb_get": lambda: records.encode_ddb_get(0, 0x1234, "geometry.sectors"),
    "rec_ddb_get_reply": lambda: records.encode_ddb_reply(0, "63"),
    "rec_ddb_get_missing": lambda: records.encode_ddb_reply(0, None),
    "rec_qab": lambda: records.encode_map(9, MapRequest(0x1234, 65536, 1 << 20, 16)),
    "rec_qab_reply": lambda: records.encode_map_reply(9, 16, b"\x05\x80"),
    "classic_put_disk_hdr": lambda: classic.encode_put(
        "[ds] a/a.vmdk",
        file_type=FileType.DISK,
        flags=PutFlag.VMFS | PutFlag.OVERWRITE | PutFlag.THIN | PutFlag.LSILOGIC,
        size=1 << 30,
        space=1 << 30,
    ),
    "classic_filedata_zero_run": lambda: classic.encode_data(ZERO_RUN),
    "classic_filedata_eof": lambda: classic.encode_data(b""),
    "classic_ddb": lambda: classic.encode_metadata(ENTRIES),
}


def io_of(name: str) -> Io:
    return records.decode_io(payload(name))


DECODED: dict[str, tuple[Callable[[], object], object]] = {
    "greeting_esxi8": (lambda: parse_greeting(blob("greeting_esxi8")).sha256, True),
    "greeting_esxi6x": (lambda: parse_greeting(blob("greeting_esxi6x")).sha256, False),
    "dlg_session": (lambda: dialogue.parse_command(blob("dlg_session")).argument, "ticket-0"),
    "dlg_banner": (lambda: dialogue.parse_command(blob("dlg_banner")).verb, dialogue.Verb.BANNER),
    "dlg_thumb": (lambda: dialogue.parse_command(blob("dlg_thumb")).argument, TAG),
    "dlg_thumb_plain": (lambda: dialogue.parse_command(blob("dlg_thumb_plain")).argument, "PlainText"),
    "dlg_proxy_nfc": (lambda: dialogue.parse_command(blob("dlg_proxy_nfc")).argument, "nfc"),
    "dlg_proxy_nfcssl": (lambda: dialogue.parse_command(blob("dlg_proxy_nfcssl")).argument, "nfcssl"),
    "dlg_proxy_vpxa-nfc": (lambda: dialogue.parse_command(blob("dlg_proxy_vpxa-nfc")).argument, "vpxa-nfc"),
    "dlg_proxy_vpxa-nfcssl": (
        lambda: dialogue.parse_command(blob("dlg_proxy_vpxa-nfcssl")).argument,
        "vpxa-nfcssl",
    ),
    "dlg_connect_ssl": (lambda: dialogue.parse_connect(blob("dlg_connect_ssl"), tls=True), None),
    "dlg_connect_clear": (lambda: dialogue.parse_connect(blob("dlg_connect_clear"), tls=False), None),
    "hs_43_tag": (lambda: handshake.parse_tag(blob("hs_43_tag")), TAG),
    "hs_43_plaintext": (lambda: handshake.parse_tag(blob("hs_43_plaintext")), "PlainText"),
    "hs_33": (lambda: handshake.message_type(blob("hs_33")), Message.PROBE),
    "hs_51_client_v": (lambda: handshake.parse_version(blob("hs_51_client_v")), (12, 1)),
    "hs_51_client_vddk8": (lambda: handshake.parse_version(blob("hs_51_client_vddk8")), (11, 0)),
    "hs_36_ack": (lambda: handshake.expect(blob("hs_36_ack"), Message.PROBE_REPLY), None),
    "hs_51_host703": (lambda: handshake.parse_version(blob("hs_51_host703")), (9, 0)),
    "hs_51_host8": (lambda: handshake.parse_version(blob("hs_51_host8")), (11, 0)),
    "hs_54_vectura": (lambda: handshake.parse_name(blob("hs_54_vectura")[:264]), (7, 7)),
    "hs_54_vddk": (lambda: handshake.parse_name(blob("hs_54_vddk")[:264]), (4, 7)),
    "hs_55": (lambda: handshake.expect(blob("hs_55"), Message.FEATURES), None),
    "hs_52": (lambda: handshake.expect(blob("hs_52"), Message.READY), None),
    "hs_4": (lambda: handshake.message_type(blob("hs_4")), Message.SESSION_COMPLETE),
    "rec_hello_v": (lambda: records.decode_hello(payload("rec_hello_v")).effective_size, 65536),
    "rec_hello_64k_x1": (lambda: records.decode_hello(payload("rec_hello_64k_x1")), (65536, 1)),
    "rec_hello_2m_x4": (lambda: records.decode_hello(payload("rec_hello_2m_x4")), (2 << 20, 4)),
    "rec_sockopts": (lambda: records.decode_sockopts(payload("rec_sockopts")), (0, 0, 0)),
    "rec_sockopts_reply_8": (
        lambda: records.decode_sockopts(payload("rec_sockopts_reply_8")),
        (1675000, 1675000, 1),
    ),
    "rec_respool": (lambda: records.decode_respool(payload("rec_respool")), 1),
    "rec_open_ro": (lambda: records.decode_open(payload("rec_open_ro")).writable, False),
    "rec_open_rw": (lambda: records.decode_open(payload("rec_open_rw")), (len(PATH), 2, 0x1A)),
    "rec_open_reply_25GiB_ro": (
        lambda: records.decode_open_reply(payload("rec_open_reply_25GiB_ro")),
        OPEN_25,
    ),
    "rec_open_reply_16GiB": (lambda: records.decode_open_reply(payload("rec_open_reply_16GiB")), OPEN_16),
    "rec_error_11": (lambda: records.decode_error(payload("rec_error_11")), ErrorHead(11, len(DENIED))),
    "rec_open_refused_tail": (
        lambda: records.decode_open_reply(payload("rec_open_refused_tail")),
        OpenReply(*[0] * 9),
    ),
    "rec_read_1MiB_none": (
        lambda: io_of("rec_read_1MiB_none"),
        Io(H, 1, 0, READ_1M, 1 << 20, 0, 1 << 20, 1 << 20),
    ),
    "rec_read_1MiB_skipz": (lambda: io_of("rec_read_1MiB_skipz").compression, 3),
    "rec_read_129s": (lambda: io_of("rec_read_129s"), Io(0x1234, 1, 0, 0, 66048, 0, 66048, 66048)),
    "rec_read_129s_frag0_hdr": (lambda: io_of("rec_read_129s_frag0_hdr")[5:8], (0, 65536, 65536)),
    "rec_read_129s_frag1_hdr": (lambda: io_of("rec_read_129s_frag1_hdr")[5:8], (65536, 512, 512)),
    "rec_read_reply_status3": (lambda: records.decode_io(blob("rec_read_reply_status3")).handle, 3),
    "rec_chunk_abc": (lambda: io_of("rec_chunk_abc"), Io(0, 1, 0, 4096, 1024, 512, 3, 3)),
    "rec_write_1s_hdr": (lambda: io_of("rec_write_1s_hdr"), Io(0x1234, 0, 0, 0, 512, 0, 512, 512)),
    "rec_write_129s_frag0_hdr": (lambda: io_of("rec_write_129s_frag0_hdr")[4:8], (66048, 0, 65536, 65536)),
    "rec_write_129s_frag1_hdr": (lambda: io_of("rec_write_129s_frag1_hdr")[4:8], (66048, 65536, 512, 512)),
    "rec_write_129s_ack": (lambda: io_of("rec_write_129s_ack"), Io(0, 0, 0, 0, 66048, 0, 66048, 0)),
    "rec_close_16": (lambda: records.decode_close(payload("rec_close_16")), 0x0102030405060708),
    "rec_close_8": (lambda: records.decode_close(payload("rec_close_8")), 0x1234),
    "rec_end_16": (lambda: records.parse_header(blob("rec_end_16")), (3, 16, 6)),
    "rec_end_4": (lambda: records.parse_header(blob("rec_end_4")), (3, 4, 6)),
    "rec_ddb_get": (lambda: records.decode_ddb_get(payload("rec_ddb_get")), (0x1234, 16)),
    "rec_ddb_get_reply": (lambda: records.decode_ddb_reply(payload("rec_ddb_get_reply")), 2),
    "rec_ddb_get_missing": (lambda: records.decode_ddb_reply(payload("rec_ddb_get_missing")), 0),
    "rec_qab": (lambda: records.decode_map(payload("rec_qab")), (0x1234, 65536, 1 << 20, 16)),
    "rec_qab_reply": (lambda: records.decode_map_reply(payload("rec_qab_reply")), 16),
    "classic_put_disk_hdr": (
        lambda: classic.decode_put(blob("classic_put_disk_hdr")[:264]),
        FilePut(2, 0x198, 14, 1 << 30, 1 << 30),
    ),
    "classic_filedata_zero_run": (
        lambda: classic.decode_body(blob("classic_filedata_zero_run")[272:]),
        [Run(0x7FFF, None)],
    ),
    "classic_filedata_eof": (lambda: classic.decode_data_head(blob("classic_filedata_eof")[264:]), 0),
    "classic_ddb": (lambda: classic.decode_body(blob("classic_ddb")), ENTRIES),
}

#: What the vectors of the codecs hold; None must be refused. Code, length of the chunk, content.
CODED: dict[str, tuple[int, int, bytes | None]] = {
    "zlib_0_14": (1, 15, bytes(range(15))),
    "zlib_0_15": (1, 16, bytes(range(16))),
    "zlib_0_16": (1, 17, bytes(range(17))),
    "skipz_zero2048": (3, 2048, bytes(2048)),
    "skipz_16_two": (3, 16, b"ab" + bytes(11) + b"xyz"),
    "skipz_16_full": (3, 16, bytes(range(16))),
    "skipz_16_rsv": (3, 16, bytes(range(16))),
    "skipz_16_overrun": (3, 16, None),
    "skipz_16_wrap": (3, 16, None),
}


def test_no_vector_is_left_out() -> None:
    assert set(ENCODED) == set(DECODED)
    assert set(VECTORS) == {*ENCODED, *CODED, "thumb_sha1_abc", "thumb_sha256_abc"}


@pytest.mark.parametrize("name", ENCODED)
def test_what_we_write(name: str) -> None:
    assert ENCODED[name]() == blob(name)
    assert len(blob(name)) == VECTORS[name]["len"]


@pytest.mark.parametrize("name", DECODED)
def test_what_we_read(name: str) -> None:
    decode, expected = DECODED[name]
    assert decode() == expected


@pytest.mark.parametrize("name", CODED)
def test_coded_chunks(name: str) -> None:
    code, length, expected = CODED[name]
    target = bytearray(b"\xff" * length)
    if expected is None:
        with pytest.raises(ProtocolError):
            codecs.decode_into(code, memoryview(blob(name)), memoryview(target))
        return
    codecs.decode_into(code, memoryview(blob(name)), memoryview(target))
    assert target == expected


def test_thumbprints() -> None:
    assert sha1_thumbprint(b"abc") == VECTORS["thumb_sha1_abc"]
    assert sha256_thumbprint(b"abc") == VECTORS["thumb_sha256_abc"]


def test_a_status_is_refused() -> None:
    with pytest.raises(ProtocolError, match="status 3"):
        check_status(records.decode_io(blob("rec_read_reply_status3")))


def test_published_header() -> None:
    assert records.header(4, 60, 3).hex() == "7ada00a1040000003c00000003000000"
    with pytest.raises(ProtocolError, match="0x7ADA00A1"):
        records.parse_header(bytes.fromhex("a100da7a040000003c00000003000000"))
