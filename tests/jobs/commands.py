"""Runs one command of the command line in this process, on its Ray."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import typer
from typer.testing import CliRunner

from schemas.errors import PixeleseError


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(command: Callable[..., None], *arguments: str, stdin: str | None = None) -> Done:
    """Runs a command; errors that a user can mend are told as `pixelese` tells them."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    error = result.exception
    if isinstance(error, PixeleseError):
        return Done(1, result.stdout, f"{result.stderr}{error}")
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
        raise error
    return Done(result.exit_code, result.stdout, result.stderr)
