"""The command line: parse, call, print, exit. Everything it does a notebook can do with `import axformer_onnx`."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from axformer_onnx.cli.verbs import VERBS
from axformer_onnx.errors import AxformerError, printable
from axformer_onnx.version import __version__

_EPILOG = """\b
Exit codes:
  0    done
  1    compare: a gate failed
  2    something about the input that you can mend: model, plan, data, options
  3    something at run time: ONNX Runtime, a provider, a missing extra, the file system,
       a produced graph that failed its own check
  130  stopped with Ctrl-C
  143  stopped by SIGTERM
"""
_STOPPED = "stopped; the same command goes on where the journal ends"


class _Verbs(click.Group):
    """Imports a subcommand when it is called, and none for the list of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command = importlib.import_module(f"axformer_onnx.cli.subcommands.{name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. Commands: {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs,
    epilog=_EPILOG,
    invoke_without_command=True,  # for --version
    no_args_is_help=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, help="Show the version; with --verbose what a report of a bug needs.")
@click.option("--verbose", is_flag=True, help="With --version: versions, machine, providers, extras.")
@click.pass_context
def cli(ctx: click.Context, version: bool, verbose: bool) -> None:
    """Make a fine-tuned transformer smaller and faster, in ONNX, and prove that it scores as well.

    MODEL is an .onnx file, a folder that holds one, a checkpoint's folder, or a name on the Hugging Face hub.
    """
    if version:
        _print_version(verbose=verbose)
        ctx.exit()
    if verbose:
        ctx.fail("--verbose goes with --version")
    if ctx.invoked_subcommand is None:
        ctx.fail(f"No command was given. Commands: {', '.join(VERBS)}")


def _print_version(*, verbose: bool) -> None:
    if not verbose:
        click.echo(f"axformer-onnx, version {__version__}")
        return
    from axformer_onnx.installation import environment_lines

    click.echo("\n".join(environment_lines()))


@contextmanager
def _cleaned_up_when_terminated() -> Iterator[None]:
    """SIGTERM, as `docker stop` and job schedulers send it, ends a command so that what it keeps in temporary folders goes, too.

    Where the signal comes while a module of C++ is being imported, that module raises an error of its own in place of the exit.
    """
    codes = list[int]()

    def end(number: int, frame: object) -> NoReturn:
        click.echo(_STOPPED, err=True)
        codes.append(128 + number)
        sys.exit(codes[0])

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception:
        if codes:
            sys.exit(codes[0])
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Entry point of `axformer-onnx`: errors of ours are one line on stderr and their exit code; bugs are tracebacks."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # what it warns of in a damaged graph is said in our error
    try:
        with _cleaned_up_when_terminated():
            sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo(_STOPPED, err=True)
        sys.exit(130)
    except AxformerError as error:
        click.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
        sys.exit(error.exit_code)
