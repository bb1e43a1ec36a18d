"""Whom a client trusts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfctools import certificate, other_certificate
from vdkit.errors import ExitCode, TrustError, UsageError
from vdkit.net.trust import Trust, normalise_thumbprint, pem_to_der


@pytest.mark.parametrize("digits", [40, 64])
def test_thumbprints_in_every_spelling(digits: int) -> None:
    bare = ("0a1B" * 16)[:digits]
    colons = ":".join(bare[i : i + 2] for i in range(0, digits, 2))
    expected = colons.upper()
    kind = "sha1" if digits == 40 else "sha256"
    for text in (bare, colons, bare.lower(), f" {colons} ", f"{kind}:{bare}", f"{kind.upper()}:{colons}"):
        assert normalise_thumbprint(text) == expected
        assert Trust.of_thumbprint(text) == Trust(**{kind: expected})


@pytest.mark.parametrize("text", ["", "AB", "xy" * 20, "ab" * 21, "ab" * 33, "SHA256"])
def test_other_texts_are_no_thumbprint(text: str) -> None:
    with pytest.raises(UsageError, match=r"40 .* or 64"):
        normalise_thumbprint(text)


def test_nobody_is_trusted_without_a_reason() -> None:
    with pytest.raises(UsageError, match="pinned"):
        Trust()
    with pytest.raises(UsageError, match="40"):
        Trust(sha1="ab" * 32)
    with pytest.raises(UsageError, match="PEM"):
        Trust(certificate="not a certificate")


def test_pins() -> None:
    mine, other = certificate(), other_certificate()
    for trust in (
        Trust(sha256=mine.sha256),
        Trust(sha1=mine.sha1.lower().replace(":", "")),
        Trust(certificate=mine.pem),
        Trust(sha256=mine.sha256, sha1=mine.sha1, certificate=mine.pem),
    ):
        assert trust.pinned
        trust.check(mine.der, "h:902")
        with pytest.raises(TrustError) as caught:
            trust.check(other.der, "h:902")
        text = str(caught.value)
        assert text.startswith("h:902: ")
        assert any(one in text for one in (mine.sha256, mine.sha1))
        assert any(one in text for one in (other.sha256, other.sha1))
        assert caught.value.exit_code == ExitCode.TRUST
        with pytest.raises(TrustError, match="no certificate"):
            trust.check(None, "h:902")


def test_all_that_is_given_must_hold() -> None:
    with pytest.raises(TrustError):
        Trust(sha1=certificate().sha1, sha256=other_certificate().sha256).check(certificate().der, "h")


def test_a_file_that_is_no_pem(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(UsageError, match=r"ca\.pem"):
        Trust(ca_file=str(path)).context()
    path.write_text("nothing")
    with pytest.raises(UsageError, match=r"ca\.pem"):
        Trust(ca_file=str(path)).context()


def test_pem_in_a_longer_text() -> None:
    mine = certificate()
    assert pem_to_der(f"some text\n{mine.pem}\n{other_certificate().pem}") == mine.der
    assert mine.sha256 in repr(mine)
    assert "PRIVATE" not in repr(mine)
