"""Where a setting comes from: flags, then ``VDKIT_*``, then ``GOVC_*``, then the TOML file.

The library reads no environment; this module, the command line's, is the one place that does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from vdkit.cli.passwords import read_password_file
from vdkit.errors import UsageError
from vdkit.net.connect import host_port
from vdkit.net.secret import Secret

if TYPE_CHECKING:
    from vdkit.net.trust import Trust

DEFAULT_PORT = 443
#: A configuration or known-hosts file larger than this is not one.
MAX_CONFIG_BYTES = 1 << 20

_KEYS = frozenset(
    {
        "host",
        "port",
        "user",
        "password_file",
        "cookie_file",
        "thumbprint",
        "ca_file",
        "known_hosts",
        "legacy_tls",
        "repository",
        "transports",
        "host_memory",
        "host_connections",
        "host_wait",
        "limits_folder",
    }
)
#: What no name or address of a host has: it would be part of a path, a URL or a list.
_IN_NO_HOST = frozenset(" \t\r\n\0/\\?#,;<>\"'`()[]{}|^")
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True)
class HostSettings:
    """Everything needed to log in to one host; with a ``cookie`` neither user nor password is."""

    host: str
    port: int
    user: str
    password: Secret | None
    trust: Trust
    cookie: Secret | None = None


class Settings:
    """Looks settings up in their order of precedence; ``warnings`` collects what was ignored and why."""

    def __init__(self, environment: Mapping[str, str], config_file: Path | None = None) -> None:
        self._environment = environment
        self._config = _load_config(environment, config_file)
        self._govc = _govc_url(environment.get("GOVC_URL", ""))
        self._url_account = True
        self.warnings: list[str] = []

    def text(self, key: str, flag: str | None = None) -> str | None:
        """One setting as text: the flag, ``VDKIT_KEY``, govc's name for it, or the file's."""
        if flag:
            return flag
        own = self._environment.get(f"VDKIT_{key.upper()}")
        if own:
            return own
        if govc := self._from_govc(key):
            return govc
        return self._config.get(key)

    def number(self, key: str, flag: int | None = None) -> int | None:
        """One setting as a whole number. Raises UsageError."""
        if flag is not None:
            return flag
        text = self.text(key)
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise UsageError(f"{key} needs a whole number, not {text[:40]!r}")
        return int(text)

    def _from_govc(self, key: str) -> str | None:
        url = self._govc
        match key:
            case "host":
                # With its port: one of another setting's host would be wrong for this one.
                return url.netloc.rpartition("@")[2] if url else None
            case "user":
                inside = unquote(url.username) if url and url.username and self._url_account else None
                return self._environment.get("GOVC_USERNAME") or inside
            case "ca_file":
                return self._environment.get("GOVC_TLS_CA_CERTS")
            case _:
                return None

    def host(
        self,
        *,
        host: str | None = None,
        user: str | None = None,
        thumbprint: str | None = None,
        ca_file: str | None = None,
        password: Secret | None = None,
        cookie: Secret | None = None,
        known_hosts: str | None = None,
        legacy_tls: bool = False,
    ) -> HostSettings:
        """The host to log in to; raises UsageError naming what is missing and how to give it."""
        address = self.text("host", host)
        if not address:
            raise UsageError("no host given", remedy="pass --host, or set VDKIT_HOST or GOVC_URL")
        name, port = split_host_port(address, self._port() or DEFAULT_PORT)
        if address != self._from_govc("host"):
            # What a URL says of user and password is for its own host, and sent to no other.
            self._url_account = False
        account = self.text("user", user)
        # A user that is named at the command line wants to log in, whatever cookie the environment has.
        cookie = cookie or (None if user or password else self.cookie())
        if not account and not cookie:
            raise UsageError("no user given", remedy="pass --user, or set VDKIT_USER or GOVC_USERNAME")
        trust = self.trust(name, port, thumbprint, ca_file, known_hosts)
        if legacy_tls or self._flag("legacy_tls"):
            trust = replace(trust, legacy_tls=True)
            self.warnings.append(
                f"{name}: TLS 1.0 and 1.1 with weak signatures are allowed for this host, and for those it "
                "names for disks (--legacy-tls): whoever is in between may read along"
            )
        if cookie:
            return HostSettings(name, port, account or "", None, trust, cookie)
        return HostSettings(name, port, account or "", password or self.password(), trust)

    def _flag(self, key: str) -> bool:
        text = (self.text(key) or "").strip().lower()
        if text and text not in _YES | _NO:
            raise UsageError(f"{key} is {text[:20]!r}", remedy="say true or false")
        return text in _YES

    def cookie(self) -> Secret | None:
        """From ``VDKIT_COOKIE``, or the file that the environment or the configuration names."""
        direct = self._environment.get("VDKIT_COOKIE")
        if direct:
            return Secret(direct)
        named = self._environment.get("VDKIT_COOKIE_FILE") or self._config.get("cookie_file")
        return read_password_file(Path(named), "cookie file") if named else None

    def _port(self) -> int | None:
        text = self.text("port")
        port = None if text is None else _port_number(text)
        if text is not None and not port:
            raise UsageError(f"port {text[:20]!r} is not between 1 and 65535")
        return port

    def password(self) -> Secret | None:
        """From ``VDKIT_PASSWORD``, govc's, or the file that the configuration names."""
        direct = self._environment.get("VDKIT_PASSWORD") or self._environment.get("GOVC_PASSWORD")
        if direct:
            return Secret(direct)
        if self._govc and self._govc.password and self._url_account:
            return Secret(unquote(self._govc.password))
        named = self._environment.get("VDKIT_PASSWORD_FILE") or self._config.get("password_file")
        return read_password_file(Path(named)) if named else None

    def known_hosts(self, named: str | None = None) -> Path:
        """Our file of known hosts: the one named, or that beside the user's configuration."""
        found = self.text("known_hosts", named)
        return Path(found) if found else _config_home(self._environment) / "vdkit/known_hosts"

    def trust(
        self,
        host: str,
        port: int,
        thumbprint: str | None,
        ca_file: str | None,
        known_hosts: str | None = None,
    ) -> Trust:
        """How the host's certificate is checked: by a pin, a CA file, or what is known of the host.

        What is said for this call wins over what is known; that over a CA file that is set for all.
        """
        from vdkit.net.knownhosts import KnownHosts
        from vdkit.net.trust import Trust

        if self._environment.get("GOVC_INSECURE", "").lower() in {"1", "true", "t"}:
            self.warnings.append("GOVC_INSECURE has no effect: certificates are always verified")
        pin = self.text("thumbprint", thumbprint)
        if pin is None and ca_file is None:
            known = KnownHosts(self.known_hosts(known_hosts)).trust(host, port)
            if known is not None:
                return known
            pin = self._known_host(host, port)
        if pin is not None:
            trust = Trust.of_thumbprint(pin)
            if trust.sha1:
                self.warnings.append(
                    "the thumbprint is SHA-1; prefer the SHA-256 that 'vdkit fingerprint' prints"
                )
            return trust
        authorities = self.text("ca_file", ca_file)
        if authorities is None:
            where = host_port(host, port)
            raise UsageError(
                f"{where}: nothing says how its certificate is to be checked",
                remedy=f"run `vdkit fingerprint {where} --trust` once, or pass --thumbprint or --ca-file",
            )
        return Trust(ca_file=authorities)

    def _known_host(self, host: str, port: int) -> str | None:
        named = self._environment.get("GOVC_TLS_KNOWN_HOSTS")
        if not named:
            return None
        for line in _read_small(Path(named)).splitlines():
            fields = line.split()
            if len(fields) == 2 and fields[0] in {host_port(host, port), f"{host}:{port}", host}:
                return fields[1]
        return None


def split_host_port(text: str, default_port: int, *, lowest_port: int = 1) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]``, ``[v6]:port``, a bare v6 address, or an https URL."""
    text = text.strip()
    if "@" in text:
        # Not repeated: what stands before the sign may be a password.
        raise UsageError(
            "a host is given without user and password",
            remedy="pass --user, and --password-file or VDKIT_PASSWORD",
        )
    if "//" in text:
        try:
            url = urlsplit(text)
            if not url.hostname:
                raise UsageError(f"no host name in {text!r}")
            # RFC 6874 writes the sign before a zone as %25.
            return unquote(url.hostname), url.port or default_port
        except ValueError as error:
            raise UsageError(f"{text!r} is no URL of a host with a port between 0 and 65535") from error
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"host {text!r} is not of the form [address]:port")
        port = rest[1:]
    elif text.count(":") == 1:
        name, _, port = text.partition(":")
    else:
        name, port = text, ""
    if not name:
        raise UsageError(f"no host name in {text!r}", remedy="write HOST or HOST:PORT")
    number = _port_number(port) if port else default_port
    if number is None or (port and number < lowest_port):
        raise UsageError(f"port {port[:20]!r} in {text[:80]!r} is not between {lowest_port} and 65535")
    address, percent, zone = name.partition("%")
    if not _IN_NO_HOST.isdisjoint(address) or (percent and ":" in zone):
        raise UsageError(
            f"{name[:80]!r} is no name or address of a host",
            remedy="write HOST, HOST:PORT, or an IPv6 address and its link in brackets before a port",
        )
    return name, number


def _port_number(text: str) -> int | None:
    """A port up to 65535; None for what is none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) < 65536):
        return None
    return int(text)


def _govc_url(text: str) -> SplitResult | None:
    if not text:
        return None
    hint = "write https://HOST/sdk, with %-escapes in a user and a password; they are safer elsewhere"
    try:
        url = urlsplit(text if "//" in text else f"https://{text}")
    except ValueError:
        # Neither the text nor its error is shown: a password may be in it.
        raise UsageError("GOVC_URL is no URL of a host", remedy=hint) from None
    if "@" in f"{url.path}{url.query}{url.fragment}":
        # The password had a character that ends the name of a host: its rest would be shown as one.
        raise UsageError("GOVC_URL has a user or a password with characters that need escapes", remedy=hint)
    return url


def _load_config(environment: Mapping[str, str], named: Path | None) -> dict[str, str]:
    path = named or _default_config(environment)
    if path is None:
        return {}
    import tomllib

    try:
        table = tomllib.loads(_read_small(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise UsageError(
            f"{path}: unknown setting {unknown[0]!r}", remedy=f"known are {', '.join(sorted(_KEYS))}"
        )
    for key, value in table.items():
        if not isinstance(value, str | int | bool) or "\0" in str(value):
            raise UsageError(f"{path}: {key} is neither a text, a number, nor true or false")
    return {key: str(value) for key, value in table.items()}


def _default_config(environment: Mapping[str, str]) -> Path | None:
    if named := environment.get("VDKIT_CONFIG"):
        return Path(named)
    for candidate in (_config_home(environment) / "vdkit/config.toml", Path("/etc/vdkit/config.toml")):
        if candidate.is_file():
            return candidate
    return None


def _config_home(environment: Mapping[str, str]) -> Path:
    home = environment.get("XDG_CONFIG_HOME")
    return Path(home) if home else Path(environment.get("HOME", "/")) / ".config"


def _read_small(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise UsageError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error


def current_environment() -> Mapping[str, str]:
    return os.environ
