"""Where a setting comes from: flags, then ``VDKIT_*``, then ``GOVC_*``, then the TOML file.

The library reads no environment; this module, the command line's, is the one place that does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from vdkit.cli.passwords import read_password_file
from vdkit.errors import UsageError
from vdkit.net.secret import Secret

if TYPE_CHECKING:
    from vdkit.net.trust import Trust

DEFAULT_PORT = 443
#: A configuration or known-hosts file larger than this is not one.
MAX_CONFIG_BYTES = 1 << 20

_KEYS = frozenset({"host", "port", "user", "password_file", "thumbprint", "ca_file", "repository"})


@dataclass(frozen=True)
class HostSettings:
    """Everything needed to log in to one host."""

    host: str
    port: int
    user: str
    password: Secret | None
    trust: Trust


class Settings:
    """Looks settings up in their order of precedence; ``warnings`` collects what was ignored and why."""

    def __init__(self, environment: Mapping[str, str], config_file: Path | None = None) -> None:
        self._environment = environment
        self._config = _load_config(environment, config_file)
        self._govc = _govc_url(environment.get("GOVC_URL", ""))
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

    def _from_govc(self, key: str) -> str | None:
        url = self._govc
        match key:
            case "host":
                # With its port: one of another setting's host would be wrong for this one.
                return url.netloc.rpartition("@")[2] if url else None
            case "user":
                inside = unquote(url.username) if url and url.username else None
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
    ) -> HostSettings:
        """The host to log in to; raises UsageError naming what is missing and how to give it."""
        address = self.text("host", host)
        if not address:
            raise UsageError("no host given", remedy="pass --host, or set VDKIT_HOST or GOVC_URL")
        name, port = split_host_port(address, int(self._port() or DEFAULT_PORT))
        account = self.text("user", user)
        if not account:
            raise UsageError("no user given", remedy="pass --user, or set VDKIT_USER or GOVC_USERNAME")
        return HostSettings(
            name, port, account, password or self.password(), self.trust(name, port, thumbprint, ca_file)
        )

    def _port(self) -> str | None:
        port = self.text("port")
        if port is not None and not port.isdigit():
            raise UsageError(f"port {port!r} is not a number")
        return port

    def password(self) -> Secret | None:
        """From ``VDKIT_PASSWORD``, govc's, or the file that the configuration names."""
        direct = self._environment.get("VDKIT_PASSWORD") or self._environment.get("GOVC_PASSWORD")
        if direct:
            return Secret(direct)
        if self._govc and self._govc.password:
            return Secret(unquote(self._govc.password))
        named = self._environment.get("VDKIT_PASSWORD_FILE") or self._config.get("password_file")
        return read_password_file(Path(named)) if named else None

    def trust(self, host: str, port: int, thumbprint: str | None, ca_file: str | None) -> Trust:
        """How the host's certificate is checked: pin, known hosts, or a CA file."""
        from vdkit.net.trust import Trust

        if self._environment.get("GOVC_INSECURE", "").lower() in {"1", "true", "t"}:
            self.warnings.append("GOVC_INSECURE has no effect: certificates are always verified")
        pin = self.text("thumbprint", thumbprint)
        if pin is None and ca_file is None:
            pin = self._known_host(host, port)
        if pin is not None:
            trust = Trust.of_thumbprint(pin)
            if trust.sha1:
                self.warnings.append(
                    "the thumbprint is SHA-1; prefer the SHA-256 that 'vdkit fingerprint' prints"
                )
            return trust
        return Trust(ca_file=self.text("ca_file", ca_file))

    def _known_host(self, host: str, port: int) -> str | None:
        named = self._environment.get("GOVC_TLS_KNOWN_HOSTS")
        if not named:
            return None
        for line in _read_small(Path(named)).splitlines():
            fields = line.split()
            if len(fields) == 2 and fields[0] in {f"{host}:{port}", host}:
                return fields[1]
        return None


def split_host_port(text: str, default_port: int, *, lowest_port: int = 1) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]``, ``[v6]:port``, a bare v6 address, or an https URL."""
    if "@" in text:
        # Not repeated: what stands before the sign may be a password.
        raise UsageError(
            "a host is given without user and password",
            remedy="pass --user, and --password-file or VDKIT_PASSWORD",
        )
    if "//" in text:
        url = urlsplit(text)
        if not url.hostname:
            raise UsageError(f"no host name in {text!r}")
        try:
            return url.hostname, url.port or default_port
        except ValueError as error:
            raise UsageError(f"the port in {text!r} is not between 0 and 65535") from error
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
    if port and not (port.isdigit() and lowest_port <= int(port) < 65536):
        raise UsageError(f"port {port!r} in {text!r} is not between {lowest_port} and 65535")
    return name, int(port) if port else default_port


def _govc_url(text: str) -> SplitResult | None:
    if not text:
        return None
    return urlsplit(text if "//" in text else f"https://{text}")


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
    return {key: str(value) for key, value in table.items()}


def _default_config(environment: Mapping[str, str]) -> Path | None:
    if named := environment.get("VDKIT_CONFIG"):
        return Path(named)
    home = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "/")) / ".config")
    for candidate in (Path(home) / "vdkit/config.toml", Path("/etc/vdkit/config.toml")):
        if candidate.is_file():
            return candidate
    return None


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
