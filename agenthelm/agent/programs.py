"""DSPy modules as agents ask them: what they take, and what runs a bare Signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import dspy

from agenthelm._runtime.workers import on_trio
from agenthelm.agent.tool_loop import ToolLoop
from agenthelm.agent.toolset import Toolset
from agenthelm.exceptions import AgentInputError, nearest

__all__ = ["as_program", "ask_awaitable", "check_program_inputs", "is_awaitable", "predictor"]

_CALL_OPTIONS = frozenset({"config", "demos", "lm", "new_signature", "signature", "max_iters"})
"""What DSPy's predictors take beside inputs."""


def predictor(signature: type[dspy.Signature], tools: Toolset) -> dspy.Module:
    """What fills a Signature: a prediction, or a loop in which the LM chooses among tools first."""
    return ToolLoop(signature, tools) if tools else dspy.Predict(signature)


def as_program(module: Any) -> dspy.Module:
    """The module itself, or a prediction of the Signature that was given in its place.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(module, dspy.Module):
        return module
    if isinstance(module, str) or (inspect.isclass(module) and issubclass(module, dspy.Signature)):
        return dspy.Predict(module)
    hint = "an instance of it" if inspect.isclass(module) else "a DSPy module or a Signature"
    raise TypeError(f"ask needs {hint}, not {module!r}")


async def ask_awaitable(program: dspy.Module, inputs: Mapping[str, Any]) -> Any:
    """Run a module that has an ``aforward`` only.

    Raises:
        TypeError: On trio, where DSPy's own async calls don't work.
    """
    if on_trio():
        name = type(program).__name__
        raise TypeError(
            f"{name} has an aforward only, and DSPy's modules can be awaited on asyncio only; give it a forward"
        )
    return await program.acall(**inputs)


def is_awaitable(program: dspy.Module) -> bool:
    """Whether a module has an ``aforward`` only, so that it can be awaited and not be called."""
    return not hasattr(type(program), "forward") and hasattr(type(program), "aforward")


def check_program_inputs(program: dspy.Module, inputs: Mapping[str, Any], *, agent: str) -> None:
    """Refuse inputs that a module does not declare, and calls that lack a required one; DSPy only warns.

    Raises:
        AgentInputError: Naming the field, the nearest names, and what the module takes.
    """
    declared = _declared_inputs(program)
    if declared is None:
        return
    label = type(program).__name__
    for name in inputs:
        if name not in declared and name not in _CALL_OPTIONS:
            raise AgentInputError(
                f"agent {agent!r} gave {label} the input {name!r}, which its signature does not declare."
                f"{nearest(name, declared)} It declares: {', '.join(declared) or 'no inputs'}.",
                agent=agent,
            )
    missing = [name for name, required in declared.items() if required and name not in inputs]
    if missing:
        raise AgentInputError(
            f"agent {agent!r} did not give {label} the inputs {', '.join(map(repr, missing))}", agent=agent
        )


def _declared_inputs(program: Any) -> dict[str, bool] | None:
    """Input names and whether each is required; None where nothing declares them."""
    if isinstance(program, (dspy.BestOfN, dspy.Refine)):  # they hand on what they get
        return _declared_inputs(program.module)
    if hasattr(program, "get_signature"):  # an agent
        described = program.get_signature()
        return None if described.open_inputs else {name: spec.required for name, spec in described.inputs.items()}
    explicit = _parameters(program)
    if explicit is not None:
        return explicit
    if getattr(type(program), "forward", None) is dspy.ChainOfThought.forward:
        program = program.predict
    fields = getattr(getattr(program, "signature", None), "input_fields", None)
    return None if fields is None else {name: bool(info.is_required()) for name, info in fields.items()}


def _parameters(program: dspy.Module) -> dict[str, bool] | None:
    """The parameters of a module's own ``forward``; None where it takes anything by ``**kwargs``."""
    function = getattr(type(program), "forward", None) or getattr(type(program), "aforward", None)
    if function is None:
        return None
    declared: dict[str, bool] = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            return None
        declared[parameter.name] = parameter.default is inspect.Parameter.empty
    return declared
