"""The root of the command line: which commands there are, and what becomes of an error that reaches the top."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from agenthelm.cli._ending import USAGE_ERROR, end_process, to_stderr
from agenthelm.exceptions import nearest

__all__ = ["app", "main"]

_COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module, one line for --help, panel)
    "run": ("run", "Run a task with one or more agents.", "Work"),
    "list-agents": ("agents:list_app", "List the agents that can be run.", "Work"),
    "describe": ("agents:describe_app", "Describe an agent: inputs, outputs, tools.", "Work"),
    "tools": ("tools", "List and show tools with their contracts.", "Work"),
    "saga": ("saga", "Run, look at, undo and recover what runs did to the world.", "Undo"),
    "traces": ("traces", "Look through what was called, by whom, and how it ended.", "Look"),
    "cost": ("cost", "Prices of models, and what runs have cost.", "Look"),
    "memory": ("memory", "Read and write what agents remember.", "Look"),
    "init": ("init", "Make a project: an agent, a tool and its undo, a test.", "Set up"),
    "doctor": ("doctor", "Check model, memory, embedder and disk.", "Set up"),
}


class LazyGroup(TyperGroup):
    """Knows its commands by name and imports the one that is used: ``--help`` must not pay for all of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the help page."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that is enough for help pages and completion of names."""
        if cmd_name not in _COMMANDS:
            return None
        _, line, panel = _COMMANDS[cmd_name]
        return TyperCommand(cmd_name, help=line, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise USAGE_ERROR(f"there is no command {args[0]!r}.{nearest(args[0], _COMMANDS)}", ctx=ctx)
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and _load(str(command.name)), rest

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and turn usage errors into one line and exit code 2."""
        run = functools.partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except typer.Abort:
            code = 130
        except USAGE_ERROR as exc:
            code = _usage_error(exc)
        return sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Any) -> int:
    path = error.ctx.command_path if getattr(error, "ctx", None) else "agenthelm"
    message = " ".join(error.format_message().split())
    if type(error).__name__ == "NoArgsIsHelpError":
        to_stderr(error.format_message() + "\n")
        return 2
    to_stderr(f"error: {message} (see `{path} --help`)\n")
    return 2


def _load(name: str) -> Any:
    module_name, _, attribute = _COMMANDS[name][0].partition(":")
    module = importlib.import_module(f"agenthelm.cli.{module_name}")
    command = typer.main.get_command(getattr(module, attribute or "app"))
    command.name = name
    return command


app: typer.Typer = typer.Typer(
    name="agenthelm",
    cls=LazyGroup,
    help="Agents whose side effects you can take back.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        sys.stdout.write(f"agenthelm {version('agenthelm')}\n")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; any command takes it.")] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            help="Log to stderr; -vv logs more. Any command takes it.",
        ),
    ] = 0,
) -> None:
    """Agents whose side effects you can take back."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit
    from agenthelm.cli import _command

    _command.configure(debug=debug, verbose=verbose, reset=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    from agenthelm.cli._ending import open_streams

    open_streams()
    try:
        app(arguments, prog_name="agenthelm")
    except SystemExit as ending:
        end_process(ending.code if isinstance(ending.code, int) else 1)


if __name__ == "__main__":
    main()
