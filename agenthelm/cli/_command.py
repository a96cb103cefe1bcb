"""What every command shares: ``--debug`` and ``-v``, the event loop, and errors that become one line and an exit code."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from agenthelm import exceptions as errors
from agenthelm.cli._console import escape_controls, stdout_for_document
from agenthelm.cli._ending import USAGE_ERROR, to_stderr
from agenthelm.cli._loop import Interrupted, run
from agenthelm.telling import describe, message_of, notes_of

__all__ = ["Failure", "command", "configure", "report", "summary"]


class Failure(Exception):  # noqa: N818 - ends a command whose failure is already reported
    """Ends the command with an exit code; what had to be said has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class _Options:
    debug: bool = False
    verbose: int = 0


_options = _Options()

_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
_Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Log to stderr; -vv logs more.")
]


def configure(*, debug: bool, verbose: int, reset: bool = False) -> None:
    """Set what ``--debug`` and ``-v`` say, before or after the command's name."""
    if reset:
        _options.debug, _options.verbose = debug, verbose
    else:
        _options.debug |= debug
        _options.verbose = max(_options.verbose, verbose)
    logger = logging.getLogger("agenthelm")
    logger.handlers = [_Log()]
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(_options.verbose, 2)])
    logger.propagate = False


class _Log(logging.Handler):
    """Writes to whatever stderr is at that moment: a live view puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        place = f"{record.name}: " if _options.verbose else ""
        text = escape_controls(" ".join(record.getMessage().split()))
        to_stderr(f"{record.levelname.lower()}: {place}{text}\n")
        if record.exc_info and _options.debug:
            to_stderr("".join(traceback.format_exception(record.exc_info[1])))


def command(
    app: typer.Typer, name: str | None = None, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function, sync or async, as a command with the options that all commands have."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        app.command(name, **options)(_wrapped(function))
        return function

    return register


def _wrapped(function: Callable[..., Any]) -> Callable[..., None]:
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def wrapper(*, debug: bool = False, verbose: int = 0, **arguments: Any) -> None:
        configure(debug=debug, verbose=verbose)
        call = functools.partial(function, **arguments)
        if inspect.iscoroutinefunction(function):
            call = functools.partial(run, call)
        code = _run(call, json=arguments.get("json") is True)
        if code:
            raise typer.Exit(code)

    shared = [
        inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug),
        inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=_Verbose),
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    public: Any = wrapper
    public.__signature__ = signature.replace(parameters=[*parameters, *shared])
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*parameters, *shared]}
    del public.__wrapped__  # Typer would read the original's signature instead
    return wrapper


def _run(call: Callable[[], Any], *, json: bool) -> int:
    try:
        with stdout_for_document() if json else nullcontext():
            call()
    except (typer.Exit, typer.Abort):
        raise
    except Failure as failure:
        return failure.code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, USAGE_ERROR):
            raise
        return report(error)
    return 0


_USAGE: tuple[type[Exception], ...] = (
    errors.ConfigError,
    errors.UnknownAgentError,
    errors.UnknownToolError,
    errors.AgentLoadError,
    errors.AgentInputError,
    errors.WiringError,
    errors.ModelNotConfiguredError,
    errors.PlanError,
    errors.ToolContractError,
    errors.RunNotFoundError,
    errors.RunExistsError,
)


def exit_code(error: BaseException) -> int:
    """1 for a run that failed and was undone, 2 for wrong usage, 3 if something could not be undone, 130 for Ctrl-C."""
    saga = getattr(error, "saga", None)
    if getattr(saga, "stuck", None) or getattr(saga, "status", None) == "failed":
        return 3
    if isinstance(error, Interrupted):
        return error.code
    if isinstance(error, _USAGE) and not getattr(saga, "steps", None):
        return 2
    return 1


def report(error: BaseException) -> int:
    """Print an error as one line to stderr, with its notes, and say which exit code it means."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, Interrupted):
        return exit_code(error)
    if _options.debug:
        to_stderr("".join(traceback.format_exception(error)))
    lines = [f"error: {summary(error)}", *(f"  {note}" for note in notes_of(error))]
    to_stderr(escape_controls("\n".join(lines)) + "\n")
    return exit_code(error)


def summary(error: BaseException) -> str:
    """One line: our own errors speak for themselves, others are named, with the place in the user's code."""
    text = " ".join((message_of(error) or "").split())
    if isinstance(error, ExceptionGroup):  # its message ends with the number of those inside
        return f"{text.rpartition(' (')[0]}: " + "; ".join(summary(inner) for inner in error.exceptions)
    if isinstance(error, errors.ModelNotConfiguredError):
        return str(error).strip()  # says in three lines how to set one
    if isinstance(error, (errors.AgentHelmError, Interrupted)) and text:
        return text
    place = _place(error)
    return describe(error) + (f" ({place})" if place else "")


def _place(error: BaseException) -> str | None:
    """The last frame that is neither ours nor a library's."""
    here = Path(__file__).resolve().parent.parent
    found = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        parts = path.parts
        if path.is_relative_to(here) or "site-packages" in parts or str(path).startswith(("<", sys.base_prefix)):
            continue
        found = f"{path.name}:{frame.lineno}"
    return found
