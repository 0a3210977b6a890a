"""What every command shares: finding its module, global flags, and how an error is said."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sqlite3
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import qkernels

if TYPE_CHECKING:
    from pydantic import ValidationError

# Each is a module beside this one: its docstring is the help, its function `command` the command,
# and SETTINGS, where there are any, are typer's.
COMMANDS = (
    "info", "data", "pipeline", "distill", "prune", "quantize", "evaluate", "export", "advise", "compile",
    "profile", "serve", "bench",
)  # fmt: skip
# Others are faults of ours; those of sqlite3 are of the file that keeps a teacher's answers.
USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, sqlite3.Error)
STOPPED = "stopped; the same command goes on from the last whole epoch"
INTERRUPTED = 130  # 128 + SIGINT, which typer makes of Ctrl-C

app = typer.Typer(
    help="int8 layers for PyTorch, and the workflow that gets a trained teacher into them.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


class LateCommand(TyperCommand):
    """A command whose module is imported when it is called: the list of commands needs no torch."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        module = importlib.import_module(f"{__package__}.{self.name}")
        called = typer.Typer(add_completion=False)
        settings = getattr(module, "SETTINGS", {})
        called.command(self.name, help=module.__doc__, **settings)(module.command)
        return typer.main.get_command(called).make_context(info_name, args, *rest, **extra)


def _docstring(name: str) -> str:
    """The docstring of a command's module, which is read and not run."""
    found = importlib.util.find_spec(f"{__package__}.{name}")
    assert found is not None and found.loader is not None
    source = found.loader.get_source(found.name)  # type: ignore[attr-defined]
    return inspect.cleandoc(ast.get_docstring(ast.parse(source)) or "")


for _name in COMMANDS:
    app.command(_name, help=_docstring(_name), cls=LateCommand)(lambda: None)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qkernels {qkernels.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch and of the kernels.", min=1)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Say the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit; what a user can mend is one sentence on stderr and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        code = app(words, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Exception as error:
        usage = hasattr(error, "format_message")  # a flag that typer does not know or take
        if debug or not (usage or isinstance(error, USER_ERRORS)):
            raise
        print(f"qkernels: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    if code == INTERRUPTED:
        print(f"qkernels: {STOPPED}", file=sys.stderr)
    sys.exit(code or 0)


def _sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    if hasattr(error, "errors") and isinstance(error, ValueError):
        return _settings_at_fault(error)  # type: ignore[arg-type]
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(text.split()) or type(error).__name__


def _settings_at_fault(error: ValidationError) -> str:
    """Which flags a pydantic config refused."""
    faults = error.errors()
    parts = [f"{_flag(e['loc'][0])}={e['input']!r}: {e['msg']}" for e in faults if e["loc"]]
    return "; ".join(parts) or faults[0]["msg"].removeprefix("Value error, ")


def _flag(field: object) -> str:
    return "--" + str(field).replace("_", "-")
