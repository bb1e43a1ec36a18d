"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vdkit.cli.output import print_note
from vdkit.cli.passwords import ask_password, read_password_descriptor, read_password_file
from vdkit.cli.settings import HostSettings, Settings, current_environment
from vdkit.net.secret import Secret

if TYPE_CHECKING:
    from vdkit.vsphere.session import Session

HostOption = Annotated[
    str | None,
    typer.Option("--host", "-H", metavar="HOST[:PORT]", help="ESXi or vCenter [VDKIT_HOST, GOVC_URL]."),
]
UserOption = Annotated[str | None, typer.Option("--user", "-u", help="Account [VDKIT_USER, GOVC_USERNAME].")]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file", help="File with the password, readable by its owner only [VDKIT_PASSWORD_FILE]."
    ),
]
PasswordFdOption = Annotated[
    int | None, typer.Option("--password-fd", help="Open descriptor to read the password from.", min=0)
]
ThumbprintOption = Annotated[
    str | None,
    typer.Option("--thumbprint", help="SHA-256 (or SHA-1) of the host's certificate [VDKIT_THUMBPRINT]."),
]
CaFileOption = Annotated[
    str | None,
    typer.Option("--ca-file", help="Certificate authorities to trust [VDKIT_CA_FILE, GOVC_TLS_CA_CERTS]."),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (TOML) [VDKIT_CONFIG].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@dataclass(frozen=True)
class HostFlags:
    """The flags that say which host; they end here and become :class:`HostSettings`."""

    host: str | None
    user: str | None
    password_file: Path | None
    password_fd: int | None
    thumbprint: str | None
    ca_file: str | None
    config: Path | None

    def resolve(self) -> HostSettings:
        settings = Settings(current_environment(), self.config)
        found = settings.host(
            host=self.host,
            user=self.user,
            thumbprint=self.thumbprint,
            ca_file=self.ca_file,
            password=self._password(),
        )
        for warning in settings.warnings:
            print_note(f"warning: {warning}")
        return found

    def login(self) -> Session:
        """A session with the host that the flags, the environment or the file name."""
        from vdkit.vsphere.session import Session

        found = self.resolve()
        password = found.password or ask_password(found.user, found.host)
        return Session.login(found.host, found.port, found.user, password, found.trust)

    def _password(self) -> Secret | None:
        if self.password_fd is not None:
            return read_password_descriptor(self.password_fd)
        if self.password_file is not None:
            return read_password_file(self.password_file)
        return None
