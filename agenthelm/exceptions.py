"""Every error AgentHelm raises.

The tree, with the builtin each one also is::

    AgentHelmError
    ├── ConfigError                 ValueError       a setting that is unknown or has no sensible value
    ├── ToolError
    │   ├── ToolContractError       TypeError        a contract refused at registration
    │   ├── UnknownToolError        LookupError      no such tool, or not one this agent was given
    │   ├── ToolInputError          ValueError       arguments that do not fit the contract
    │   ├── ToolOutputError         ValueError       a result that does not fit the contract
    │   └── ToolTimeoutError        TimeoutError     the tool passed its deadline
    ├── OutcomeUnknown              RuntimeError     nobody can say whether it happened; tools raise it
    ├── ApprovalDeniedError         PermissionError  a human or a policy said no, or nobody answered
    ├── BudgetExceededError         RuntimeError     the next call would pass a limit
    ├── AgentError
    │   ├── UnknownAgentError       LookupError
    │   ├── AgentLoadError          ImportError      an app file that can't be loaded
    │   ├── AgentInputError         ValueError       inputs missing or not declared
    │   ├── AgentOutputError        ValueError       a declared output is missing
    │   └── WiringError             ValueError       a flow whose fields don't fit together
    ├── ModelError
    │   ├── ModelNotConfiguredError LookupError      no model and no key
    │   └── ModelCallError          RuntimeError     the model's endpoint failed, retries included
    ├── RunTimeoutError             TimeoutError     the deadline of a whole run
    ├── SagaError
    │   ├── PlanError               ValueError       a plan refused before its first effect
    │   ├── RunNotFoundError        LookupError
    │   ├── RunExistsError          RuntimeError     the run id it was given is a run's already
    │   ├── RunBusyError            RuntimeError     another process is running or undoing that run
    │   └── LeaseLostError          RuntimeError     this process's claim on its run is stale
    ├── StorageError                OSError          the log can't be read or written
    │   ├── StalePositionError                       somebody else appended first
    │   ├── CorruptRecordError                       a journal line that can't be read
    │   └── StorageClosedError
    └── MemoryStoreError            OSError          a memory backend failed or can't be reached
        ├── MemoryValueError        ValueError       a value JSON can't hold
        └── EmbedderMismatchError   ValueError       a collection made with another embedder

Messages are one line: what happened, where, and what to do about it. Fields carry the same facts for programs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final

__all__ = [
    "AgentError",
    "AgentHelmError",
    "AgentInputError",
    "AgentLoadError",
    "AgentOutputError",
    "ApprovalDeniedError",
    "BudgetExceededError",
    "ConfigError",
    "CorruptRecordError",
    "EmbedderMismatchError",
    "LeaseLostError",
    "MemoryStoreError",
    "MemoryValueError",
    "ModelCallError",
    "ModelError",
    "ModelNotConfiguredError",
    "OutcomeUnknown",
    "PlanError",
    "RunBusyError",
    "RunExistsError",
    "RunNotFoundError",
    "RunTimeoutError",
    "SagaError",
    "StalePositionError",
    "StorageClosedError",
    "StorageError",
    "ToolContractError",
    "ToolError",
    "ToolInputError",
    "ToolOutputError",
    "ToolTimeoutError",
    "UnknownAgentError",
    "UnknownToolError",
    "WiringError",
]

_LONGEST_NAME: Final = 200


def nearest(name: object, known: Iterable[object], *, prefix: str = "") -> str:
    """Say which known names come closest to a mistyped one.

    Args:
        name: The mistyped one.
        known: The known ones.
        prefix: What all of them begin with, shown but not compared: it would make everything look alike.

    Returns:
        ``" Did you mean 'a' or 'b'?"`` with its leading space, or an empty string when nothing is close.
    """
    bare = [str(one).removeprefix(prefix) for one in known]  # a number in the place of a name is mistyped as well
    matches = difflib.get_close_matches(str(name).removeprefix(prefix), bare, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(prefix + match) for match in matches)}?" if matches else ""


def _quoted(name: str) -> str:
    """A name that is some caller's text, cut where it is too long for a message."""
    if len(name) <= _LONGEST_NAME:
        return repr(name)
    return f"{name[:_LONGEST_NAME]!r}… <{_LONGEST_NAME} of {len(name)} characters>"


class AgentHelmError(Exception):
    """The root of every error this package raises.

    Exceptions of other classes that leave a run carry these attributes as well.

    Attributes:
        run_id: The run that it ended, or is about; None where there is none.
        saga: How that run's effects were undone: a `SagaResult`. None where no run was ended.
        usage: What the run had spent by then: a `Totals`. None as above.
    """

    run_id: str | None = None
    saga: Any = None
    usage: Any = None


class ConfigError(AgentHelmError, ValueError):
    """A setting is unknown, or its value makes no sense.

    Attributes:
        setting: The name of the setting, or None where no single one is to blame.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class ToolError(AgentHelmError):
    """The root of errors about one tool.

    Attributes:
        tool_name: The tool in question.
    """

    def __init__(self, message: str, *, tool_name: str) -> None:
        super().__init__(message)
        self.tool_name = tool_name


class ToolContractError(ToolError, TypeError):
    """A contract that contradicts itself, refused when the tool is registered."""


class UnknownToolError(ToolError, LookupError):
    """No tool of that name exists, or the caller was not given it.

    Attributes:
        known: The names that there are, sorted.
    """

    def __init__(self, tool_name: str, known: Iterable[str], *, where: str | None = None) -> None:
        names = sorted(known)
        listing = f" It has: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}." if names else " It is empty."
        if not names and where is None:
            listing = " It is empty: import the file that defines your tools; on the command line, name it with --app."
        super().__init__(
            f"no tool named {_quoted(tool_name)} in {where or 'the registry'}.{nearest(tool_name, names) or listing}",
            tool_name=tool_name,
        )
        self.known: Sequence[str] = names


class ToolInputError(ToolError, ValueError):
    """Arguments do not fit the tool's contract; the tool was not called."""


class ToolOutputError(ToolError, ValueError):
    """The tool ran and returned something its contract does not allow.

    Attributes:
        ran: Whether it ran to its end; not if it returned a coroutine or a generator, which was only begun.
    """

    def __init__(self, message: str, *, tool_name: str, ran: bool = True) -> None:
        super().__init__(message, tool_name=tool_name)
        self.ran = ran


class ToolTimeoutError(ToolError, TimeoutError):
    """An async tool was cancelled at its deadline, or an abandonable one was let go.

    Attributes:
        timeout: The deadline of one attempt in seconds.
    """

    def __init__(self, tool_name: str, timeout: float) -> None:
        super().__init__(f"tool {tool_name!r} did not finish within its deadline of {timeout:g} s", tool_name=tool_name)
        self.timeout = timeout


class OutcomeUnknown(AgentHelmError, RuntimeError):  # noqa: N818 - product vocabulary; tools raise it by this name
    """Raised by a tool that can't say whether its effect happened, or for one whose process died: it is then in doubt."""


class ApprovalDeniedError(AgentHelmError, PermissionError):
    """A call that needed approval did not get it; the tool was not called.

    Attributes:
        tool_name: The tool that was refused.
        reason: Why, in the approver's words.
        approver: Who or what decided.
    """

    def __init__(self, tool_name: str, *, reason: str, approver: str) -> None:
        super().__init__(f"tool {tool_name!r} was not approved by {approver}: {reason}")
        self.tool_name = tool_name
        self.reason = reason
        self.approver = approver


class BudgetExceededError(AgentHelmError, RuntimeError):
    """The next call would pass a limit of its budget, so it was not made.

    Attributes:
        scope: Whose budget: ``"run"``, ``"agent:NAME"`` or ``"tool:NAME"``.
        resource: Which limit: ``"usd"``, ``"tokens"``, ``"calls"``, ``"tool_calls"``, ``"seconds"`` or ``"price"``
            (an unpriced model under ``unpriced="deny"``).
        limit: The limit, in the resource's own unit.
        spent: What was spent when the call was refused.
        reserved: What calls in flight had reserved by then.
        requested: What the refused call asked for.
    """

    def __init__(
        self, *, scope: str, resource: str, limit: float, spent: float, reserved: float = 0.0, requested: float = 0.0
    ) -> None:
        if resource == "price":
            message = f"budget of {scope}: the model has no known price and unpriced='deny'"
        else:
            message = f"budget of {scope} is {_amount(limit)} {_unit(resource, limit)}; "
            if resource == "seconds":
                message += f"{_amount(spent)} have passed, so the next call was not made"
            else:
                asked = f"a call that may take {_amount(requested)}" if requested else "the next call"
                message += f"{_amount(spent)} spent and {_amount(reserved)} reserved, so {asked} was not made"
        super().__init__(message)
        self.scope = scope
        self.resource = resource
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.requested = requested


def _amount(number: float) -> str:
    """A number without an exponent, as far as that can be read."""
    return f"{number:.0f}" if float(number).is_integer() else f"{number:g}"


def _unit(resource: str, number: float) -> str:
    return "usd" if resource == "usd" else resource.replace("_", " ").removesuffix("s" if number == 1 else "")


class AgentError(AgentHelmError):
    """The root of errors about agents and flows."""


class UnknownAgentError(AgentError, LookupError):
    """No agent of that name is registered.

    Attributes:
        name: The name that was asked for.
        known: The names that there are, sorted.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(
            f"no agent named {_quoted(name)}.{nearest(name, names)} Known agents: {', '.join(names) or 'none'}."
        )
        self.name = name
        self.known: Sequence[str] = names


class AgentLoadError(AgentError, ImportError):
    """An app file or module could not be loaded, or holds no agent.

    Attributes:
        target: What was to be loaded.
        file: The file that raised, when one did.
        line: The line in that file.
        empty: Whether it was loaded, and merely holds no agents at module level.
    """

    def __init__(
        self, message: str, *, target: str, file: str | None = None, line: int | None = None, empty: bool = False
    ) -> None:
        super().__init__(message)
        self.target = target
        self.file = file
        self.line = line
        self.empty = empty


class AgentInputError(AgentError, ValueError):
    """An agent was given inputs it does not declare, or not given one it requires.

    Attributes:
        agent: The agent, or the flow.
    """

    def __init__(self, message: str, *, agent: str) -> None:
        super().__init__(message)
        self.agent = agent


class AgentOutputError(AgentError, ValueError):
    """An agent did not return an output it declares.

    Attributes:
        agent: The agent, or the flow.
    """

    def __init__(self, message: str, *, agent: str) -> None:
        super().__init__(message)
        self.agent = agent


class WiringError(AgentError, ValueError):
    """A flow's fields do not fit together; found before the first LM call.

    Attributes:
        agent: The agent whose input nothing provides, or None when the flow itself is malformed.
        field: That input.
        available: What the flow does provide at that point.
    """

    def __init__(
        self, message: str, *, agent: str | None = None, field: str | None = None, available: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.agent = agent
        self.field = field
        self.available: tuple[str, ...] = tuple(available)


class ModelError(AgentHelmError):
    """The root of errors about language models."""


class ModelNotConfiguredError(ModelError, LookupError):
    """There is neither a model nor a provider key to pick one by."""


class ModelCallError(ModelError, RuntimeError):
    """A model's endpoint failed, its retries included.

    Attributes:
        model: The model's name.
        attempts: How many times it was asked.
        status: The HTTP status of the last answer, when there was one.
    """

    def __init__(self, message: str, *, model: str, attempts: int, status: int | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.attempts = attempts
        self.status = status


class RunTimeoutError(AgentHelmError, TimeoutError):
    """A run passed the deadline it was given.

    Attributes:
        timeout: The deadline in seconds.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(f"the run did not finish within {timeout:g} s")
        self.timeout = timeout


class SagaError(AgentHelmError):
    """The root of errors about undoing, journals and recovery."""


class PlanError(SagaError, ValueError):
    """A plan, or a contract a run depends on, was refused before the first effect."""


class RunNotFoundError(SagaError, LookupError):
    """No journal is stored under that run id."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"no run {run_id!r} in this storage; `agenthelm saga list` shows the runs it holds")
        self.run_id: str = run_id


class RunExistsError(SagaError, RuntimeError):
    """A run was to begin under an id that a run has already; nothing ran.

    Attributes:
        status: How that run ended; ``open`` if it has not.
    """

    def __init__(self, run_id: str, *, status: str) -> None:
        super().__init__(
            f"there is a run {run_id!r} already ({status}), so this one did not begin; "
            f"`agenthelm saga show {run_id}` tells of it, and another run takes another id"
        )
        self.run_id: str = run_id
        self.status = status


class RunBusyError(SagaError, RuntimeError):
    """A run is still running, or somebody else is undoing it; or it has not ended, and its process is gone.

    Attributes:
        owner: Who holds it, in words.
    """

    def __init__(
        self, run_id: str, *, owner: str, advice: str = "wait for it to end, or for its lease to expire"
    ) -> None:
        super().__init__(f"run {run_id!r} is held by {owner}; {advice}")
        self.run_id: str = run_id
        self.owner = owner


class LeaseLostError(SagaError, RuntimeError):
    """Another process claimed this run, so this one stopped without undoing anything."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id!r} was claimed by another process, which undoes it; this one stopped")
        self.run_id: str = run_id


class StorageError(AgentHelmError, OSError):
    """The event log or the journal can't be read or written."""


class StalePositionError(StorageError):
    """An append expected a position that somebody else has already passed.

    Attributes:
        stream: The stream in question.
        expected: The position the append expected.
        actual: The position it found.
    """

    def __init__(self, stream: str, *, expected: int, actual: int) -> None:
        super().__init__(f"stream {stream!r} is at position {actual}, not {expected}: another writer was first")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class CorruptRecordError(StorageError):
    """A record in the middle of a journal can't be read, so nothing may be concluded from the rest.

    Attributes:
        stream: The stream in question.
        position: The record's position in it, counted from 0.
    """

    def __init__(self, stream: str, *, position: int, detail: str) -> None:
        super().__init__(
            f"record {position} of stream {stream!r} can't be read ({detail}), so its run can't be undone or ended: "
            "restore the storage from a copy, or undo by hand what `agenthelm traces show RUN` tells, and give it up with "
            "`agenthelm saga prune --unreadable RUN`"
        )
        self.stream = stream
        self.position = position


class StorageClosedError(StorageError):
    """The storage was used after ``aclose``."""


class MemoryStoreError(AgentHelmError, OSError):
    """A memory backend failed, or can't be reached."""


class MemoryValueError(MemoryStoreError, ValueError):
    """A value or a key that the store can't hold; nothing was written."""


class EmbedderMismatchError(MemoryStoreError, ValueError):
    """A collection was made with another embedder than the one it is opened with."""
