"""What every verb needs: the configuration that was asked for, and who asks."""

import os
import pwd
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:  # pydantic costs 0.1 s, which `insitu --help` need not pay
    from edge.options import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; the keys are in docs/cli.md.")]


@dataclass(frozen=True, slots=True)
class Invocation:
    """The options that stand before the verb."""

    config: Path | None


def settings_of(context: typer.Context) -> "Settings":
    """The settings of this call.

    Raises:
        ConfigError: the configuration is wrong.
    """
    from edge.config import load

    return load(config_of(context), os.environ)


def config_of(context: typer.Context) -> Path | None:
    """The file that `--config` names."""
    invocation = context.find_root().obj
    assert isinstance(invocation, Invocation)
    return invocation.config


def operator() -> str:
    """The login name of who asks, for the audit; the one behind `sudo` where there is one."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def require_owner(directory: Path) -> None:
    """Refuse to write into a state directory of another user: the daemon could not read what we leave.

    Raises:
        CommandError: it belongs to another user, or does not exist and cannot be made.
    """
    try:
        owner = directory.stat().st_uid
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{directory}: {error.strerror}") from error
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        raise CommandError(
            ExitCode.FAILED,
            f"{directory} belongs to user {name}, and this is another user",
            f"run the same command with `sudo -u {name}` before it",
        )


def local_time(text: str) -> str:
    """An ISO 8601 instant as the wall clock of this machine shows it, to the second."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S") if text else ""


def utc_now() -> datetime:
    """The instant of this call, aware."""
    return datetime.now(UTC)
