"""DSPy modules as agents ask them: what they take, and what runs a bare Signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import dspy

from agenthelm.agent.tool_loop import ToolLoop
from agenthelm.agent.toolset import Toolset
from agenthelm.exceptions import AgentInputError, nearest

__all__ = ["as_program", "check_program_inputs", "predictor"]

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


def _declared_inputs(program: dspy.Module) -> dict[str, bool] | None:
    """Input names and whether each is required; None where nothing declares them."""
    signature = getattr(program, "signature", None)
    if signature is None or not hasattr(signature, "input_fields"):
        explicit = _parameters(program)
        if explicit is not None:
            return explicit
        predictors = program.predictors()
        if not predictors:
            return None
        fields = {name: info for each in predictors for name, info in each.signature.input_fields.items()}
        # With several predictors one may get what another makes, so nothing can be called missing.
        single = len(predictors) == 1
        return {name: single and bool(info.is_required()) for name, info in fields.items()}
    return {name: bool(info.is_required()) for name, info in signature.input_fields.items()}


def _parameters(program: dspy.Module) -> dict[str, bool] | None:
    """The parameters of a module's own ``forward``; None where it takes anything by ``**kwargs``."""
    function = getattr(type(program), "forward", None)
    if function is None:
        return None
    declared: dict[str, bool] = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            return None
        declared[parameter.name] = parameter.default is inspect.Parameter.empty
    return declared
