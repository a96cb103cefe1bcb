"""Agents: DSPy modules that can be awaited, whose only ways into the world are tools and memory."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import dspy
from pydantic import BaseModel

from agenthelm._runtime.context import RunContext, current_run, entered, raise_if_stopped, report
from agenthelm._runtime.progress import Progress
from agenthelm.agent.bridge import async_context, await_from_sync, sync_context
from agenthelm.agent.home import at_home, at_work, executor_here, threaded
from agenthelm.agent.lm import agent_lm_scope, unwrap
from agenthelm.agent.models import as_model
from agenthelm.agent.programs import as_program, ask_awaitable, check_program_inputs, is_awaitable, predictor
from agenthelm.agent.signature import AgentSignature, check_inputs, check_parameters, signature_of_function
from agenthelm.agent.toolset import Toolset
from agenthelm.core.executor import ToolExecutor, current_executor, detached, detached_context, using
from agenthelm.exceptions import AgentError, AgentOutputError, nearest
from agenthelm.telling import describe
from agenthelm.tracing import spans
from agenthelm.tracing.scrub import scrub

if TYPE_CHECKING:
    from agenthelm.core.tool import Tool, ToolRegistry
    from agenthelm.memory.context import MemoryContext

__all__ = ["Agent"]

_DSPY_ERRORS = (dspy.DSPyError, dspy.lm15.LM15Error)


class Agent(dspy.Module):
    """A DSPy module with a name, tools and memory: ``await agent.run(context, **inputs) -> dict``.

    Override one of two methods. ``async def aforward(self, context, ...)`` is awaited and gets a `MemoryContext`;
    ``def forward(self, context, ...)`` runs in a worker thread and gets a `SyncMemoryContext` with the same method
    names. Where both are there, ``run`` takes ``aforward``; an ``async def forward`` is taken for ``aforward``. Without
    either, the Signature is handed to ``dspy.Predict``, or, where ``tools`` are given, the LM chooses among them until
    it can answer.

    Inputs are the parameters after ``context``, outputs the fields of the Signature: a nested ``Signature`` class, or
    ``signature=``. Agents hold no state of a run, so one instance serves many runs at once.

    Args:
        name: What it is called in flows, events and spans; by default the class's name without ``Agent``.
        description: One line on what it does; by default the first line of the class's docstring.
        signature: Its Signature, as a class or a string like ``"question -> answer"``.
        tools: The only tools an LM may choose from inside this agent: functions, tools, a registry, or names that are
            registered. Code may `use` any tool of the orchestrator.
        lm: Its language model: a ``dspy.LM`` or a model's name. None for the run's.

    Raises:
        ModelNotConfiguredError: There is no key for the model that was named.
        ConfigError: The language model is none.
        UnknownToolError: There is no tool of a name that was given.
        ToolContractError: A function can't be a tool, or two different tools share a name.
        AgentError: There is nothing to do: neither ``forward`` nor ``aforward`` nor a Signature; or they can't be
            called by name after a context.
    """

    _is_async: ClassVar[bool] = False
    _overridden: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = _overrides(cls)
        forward: Any = own.get("forward")
        aforward: Any = own.get("aforward")
        if _is_coroutine_function(forward):
            if aforward is not None:
                raise AgentError(f"{cls.__name__} has an async forward and an aforward; keep the one called aforward")
            cls.aforward = aforward = forward
            forward = None
        if aforward is not None:
            cls._is_async = cls._overridden = True
            check_parameters(cls.__name__, aforward)
            if forward is None:
                cls.forward = Agent.forward
        elif forward is not None:
            cls._is_async, cls._overridden = False, True
            cls.aforward = Agent.aforward
        if forward is not None and forward is not Agent.forward:
            check_parameters(cls.__name__, forward)

    def __init__(
        self,
        name: str | None = None,
        description: str = "",
        *,
        signature: type[dspy.Signature] | str | None = None,
        tools: ToolRegistry | Iterable[Tool | Callable[..., Any] | str] = (),
        lm: Any = None,
    ) -> None:
        super().__init__()
        self.name: str = name or _default_name(type(self))
        self.description: str = description or _default_description(type(self))
        self.signature: type[dspy.Signature] | None = _declared_signature(type(self), signature)
        self.tools: Toolset = Toolset.of(tools)
        self.lm: Any = as_model(lm)
        self._described: AgentSignature | None = None
        if not type(self)._overridden:
            if self.signature is None:
                raise AgentError(
                    f"agent {self.name!r} has nothing to do: override forward or aforward, or give it a signature"
                )
            self.predict: Any = predictor(self.signature, self.tools)

    def get_signature(self) -> AgentSignature:
        """What it takes and gives, for wiring and discovery.

        Raises:
            AgentError: Its class has an ``__init__`` that does not call this one's.
        """
        if "_described" not in self.__dict__:
            raise AgentError(f"{type(self).__name__}.__init__ does not call super().__init__(); let it do so first")
        if self._described is None:
            kind = type(self)
            if kind._overridden:
                function = kind.aforward if kind._is_async else kind.forward
            else:
                function = Agent.forward
            self._described = signature_of_function(self.name, self.description, function, self.signature)
        return self._described

    async def run(self, context: MemoryContext | None = None, /, **inputs: Any) -> dict[str, Any]:
        """Do the work once.

        Args:
            context: The memory to work with; left out, the running one.
            **inputs: The declared inputs, by name.

        Returns:
            The declared outputs, and whatever else the agent returned.

        Raises:
            AgentInputError: An input is missing or not declared; nothing ran.
            AgentOutputError: A declared output is missing.
            Exception: Whatever the agent raised. A stop (budget, denial, lost lease) leaves as it was first raised,
                whatever the code in between made of it.
        """
        signature = self.get_signature()
        check_inputs(signature, inputs)
        raise_if_stopped()
        memory = async_context(context)
        with (
            self._entered(memory) as executor,
            _progress(self.name, executor),
            _own_errors(),
            spans.agent(self.name, description=self.description or None, session_id=_session()),
        ):
            if type(self)._is_async:
                value = await super().acall(memory, **inputs)
            else:
                value = await executor.workers.run(threaded(super().__call__, sync_context(memory), **inputs))
            raise_if_stopped()
            return _outputs(signature, value)

    async def ask(self, module: Any, /, **inputs: Any) -> dspy.Prediction:
        """Run any DSPy module, on asyncio and on trio: its LM calls wait in a worker thread.

        One that has an ``aforward`` only is awaited, which DSPy can do on asyncio alone.

        Args:
            module: A module, or a Signature (class or string), which is then predicted.
            **inputs: Its inputs. Unlike in DSPy itself, one that nothing declares is an error, and so is a missing one.

        Raises:
            AgentInputError: An input is missing or not declared; nothing was asked.
            TypeError: It is no module; or it can only be awaited, and this is trio.
        """
        raise_if_stopped()
        program = as_program(module)
        if isinstance(program, Agent):
            return dspy.Prediction(**await program.run(**inputs))
        check_program_inputs(program, inputs, agent=self.name)
        executor = current_executor() or detached()
        with _own_errors():
            result: dspy.Prediction
            if is_awaitable(program):
                result = await ask_awaitable(program, inputs)
            else:
                result = await executor.workers.run(threaded(program, **inputs))
            raise_if_stopped()
        return result

    async def ause(self, tool: str, /, **arguments: Any) -> Any:
        """Call a tool under its contract, from ``aforward``.

        Code may call any tool of the orchestrator's registry; outside of a run, any of `TOOL_REGISTRY`, where
        approvals are denied and nothing is undone.

        Raises:
            RuntimeError: This agent is at work in a run, and here is a thread that is not known to belong to it.
            UnknownToolError: There is no such tool.
            ToolInputError: The arguments don't fit; nothing was called.
            ApprovalDeniedError: Nobody approved; nothing was called.
            BudgetExceededError: A budget is used up; nothing was called.
            ToolTimeoutError: The last attempt passed its deadline.
            ToolOutputError: The tool ran; its result does not fit.
            StorageError: The record could not be written.
            Exception: Whatever the tool raised in its last attempt.
        """
        return await executor_here(self.tools).call(tool, arguments)

    def use(self, tool: str, /, **arguments: Any) -> Any:
        """Call a tool under its contract, from a sync ``forward``: as `ause`, and a cancellation point."""
        return await_from_sync(functools.partial(self.ause, tool, **arguments))

    if TYPE_CHECKING:  # subclasses override these with parameters of their own, which no fixed signature would allow
        forward: Callable[..., Any]
        aforward: Callable[..., Any]
    else:

        def forward(self, context: Any = None, /, **inputs: Any) -> Any:
            """What a sync call runs: overridden by sync agents, the way to ``aforward`` in async ones."""
            if type(self)._is_async:
                return await_from_sync(functools.partial(type(self).aforward, self, async_context(context), **inputs))
            return self._prediction()(**inputs)

        async def aforward(self, context: Any = None, /, **inputs: Any) -> Any:
            """What ``acall`` awaits: overridden by async agents, the way to ``forward`` in sync ones."""
            if type(self)._is_async:  # its own one called this by `super()`
                return await self.ask(self._prediction(), **inputs)
            call = threaded(type(self).forward, self, sync_context(context), **inputs)
            return await (current_executor() or detached()).workers.run(call)

    def _prediction(self) -> Any:
        """What is done where nothing is overridden, and what `super()` does."""
        try:
            return self.predict
        except AttributeError:
            raise AgentError(
                f"agent {self.name!r} calls super(), where it has nothing to do: give it a prediction in __init__, such as "
                "self.predict = dspy.Predict(self.signature)"
            ) from None

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Run in this thread, as DSPy's optimizers and ``Evaluate`` do, which know of no context.

        Returns:
            A ``dspy.Prediction`` where the agent returned one or a dict, else what it returned.
        """
        return at_home(self._call, *args, **inputs)

    def _call(self, *args: Any, **inputs: Any) -> Any:
        context, given = self._split(args, inputs)
        check_inputs(self.get_signature(), given)
        memory = async_context(context) if type(self)._is_async else sync_context(context)
        with self._entered(context):
            value = super().__call__(memory, **given)
        return dspy.Prediction(**value) if isinstance(value, dict) else value

    async def acall(self, *args: Any, **inputs: Any) -> Any:
        """As ``__call__``, awaited. Code of your own calls `run`."""
        context, given = self._split(args, inputs)
        check_inputs(self.get_signature(), given)
        with self._entered(context):
            value = await super().acall(async_context(context), **given)
        return dspy.Prediction(**value) if isinstance(value, dict) else value

    def _split(self, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if len(args) > 1:
            raise TypeError(f"agent {self.name!r} takes one positional argument, the context; give inputs by name")
        if args:
            return args[0], inputs
        if "context" in inputs and "context" not in self.get_signature().inputs:
            inputs = dict(inputs)
            return inputs.pop("context"), inputs
        return None, inputs

    @contextmanager
    def _entered(self, memory: object | None) -> Iterator[ToolExecutor]:
        """Put this agent's identity, executor and LM in force."""
        outer: RunContext = current_run() or detached_context()
        with ExitStack() as stack:
            stack.enter_context(entered(outer.evolve(agent=self.name, memory=memory or outer.memory)))
            executor = (current_executor() or detached()).for_agent(self.name)
            stack.enter_context(using(executor))
            if executor.effects is not None:
                stack.enter_context(at_work(self.tools))
            stack.enter_context(agent_lm_scope(self.name, as_model(self.lm)))  # perhaps set to a name since
            yield executor


@contextmanager
def _progress(name: str, executor: ToolExecutor) -> Iterator[None]:
    """Tell the run's observer when the agent begins and how it ends."""
    running = current_run()
    run_id = running.run_id if running is not None else None
    report(Progress("agent_started", name, run_id=run_id))
    error = "cancelled"
    try:
        yield
        error = ""
    except Exception as exc:
        error = scrub(describe(exc))
        raise
    finally:
        cost = executor.ledger.root.cost_usd
        if error:
            report(Progress("agent_failed", name, error=error, cost_usd=cost, run_id=run_id))
        else:
            report(Progress("agent_finished", name, cost_usd=cost, run_id=run_id))


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let a stop leave as it was first raised, not as what DSPy made of it."""
    try:
        yield
    except Exception as exc:
        raise_if_stopped()
        # Only what DSPy made is taken apart: an error that the agent raised on purpose stays what it is.
        bare = unwrap(exc) if isinstance(exc, _DSPY_ERRORS) else exc
        if bare is exc:
            raise
        raise bare from bare.__cause__


def _session() -> str | None:
    running = current_run()
    return running.session_id if running is not None else None


def _outputs(signature: AgentSignature, value: Any) -> dict[str, Any]:
    """What an agent returned, as a dict with every declared output."""
    name = signature.name
    if value is None:
        result: dict[str, Any] = {}
    elif isinstance(value, Mapping):
        result = dict(value)
    elif isinstance(value, (dspy.Prediction, dspy.Example)):
        result = dict(value.items())
    elif isinstance(value, BaseModel):
        result = dict(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        result = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    else:
        raise AgentOutputError(
            f"agent {name!r} returned a {type(value).__name__}; return a dict, a dspy.Prediction or a pydantic model",
            agent=name,
        )
    for key, item in result.items():
        if inspect.iscoroutine(item):
            item.close()
            raise AgentOutputError(
                f"agent {name!r} returned a coroutine as {key!r}: nobody awaited {item.__qualname__}; write 'await' before "
                f"it, or in a sync forward use what needs none, such as self.use",
                agent=name,
            )
    for key in signature.outputs:
        if key not in result:
            raise AgentOutputError(
                f"agent {name!r} declares the output {key!r} but did not return it.{nearest(key, result)} "
                f"It returned: {', '.join(map(str, result)) or 'nothing'}.",
                agent=name,
            )
    return result


def _overrides(cls: type[Agent]) -> dict[str, Any]:
    """The ``forward`` and ``aforward`` that a class brings beside its agent base: its own, or a mixin's."""
    found: dict[str, Any] = {}
    for kind in cls.__mro__:
        if kind is not cls and issubclass(kind, Agent):
            break
        found = {name: vars(kind)[name] for name in ("forward", "aforward") if name in vars(kind)} | found
    return found


def _is_coroutine_function(function: object) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function)) if callable(function) else False


def _default_name(kind: type) -> str:
    bare = kind.__name__.removesuffix("Agent") or kind.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", bare).lower()


def _default_description(kind: type) -> str:
    """The first line of the docstring of the class or of its nearest base that is an agent of the user."""
    for base in kind.__mro__:
        if base.__module__ == __name__:
            return ""
        if base.__doc__:
            return inspect.cleandoc(base.__doc__).split("\n", 1)[0].strip()
    return ""


def _declared_signature(kind: type, given: type[dspy.Signature] | str | None) -> type[dspy.Signature] | None:
    declared = given if given is not None else getattr(kind, "Signature", None)
    if declared is None:
        return None
    if isinstance(declared, str):
        declared = dspy.Signature(declared)
    if not (inspect.isclass(declared) and issubclass(declared, dspy.Signature)):
        raise AgentError(f"the Signature of {kind.__name__} must be a dspy.Signature class or a string")
    return declared
