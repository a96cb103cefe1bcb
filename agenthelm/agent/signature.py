"""What an agent takes and what it gives, read once from its Signature, its parameters and its annotations."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, get_type_hints, is_typeddict, runtime_checkable

import dspy
from pydantic import BaseModel

from agenthelm.exceptions import AgentError, AgentInputError, nearest

__all__ = ["AgentSignature", "FieldSpec", "Runnable", "check_inputs", "check_parameters", "signature_of_function"]

CONTEXT_NAMES = frozenset({"context", "ctx", "memory"})


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One input or output.

    Attributes:
        name: Its name.
        type: Its type; ``typing.Any`` where nothing declares one.
        required: Whether a run without it is refused.
        default: What it is when it is not given; None for required fields.
        desc: What it means, in the words of the Signature.
    """

    name: str
    type: Any = Any
    required: bool = True
    default: Any = None
    desc: str = ""

    @property
    def type_name(self) -> str:
        """The type as a person writes it: ``str``, ``list[str]``."""
        return self.type.__name__ if inspect.isclass(self.type) and not typing.get_args(self.type) else str(self.type)


@dataclass(frozen=True, slots=True)
class AgentSignature:
    """What an agent or a flow takes and gives.

    Attributes:
        name: The agent's name.
        description: One line on what it does.
        inputs: Its inputs by name, in order.
        outputs: Its declared outputs by name, in order.
        open_inputs: Whether it takes inputs it does not name (a ``**kwargs`` and no Signature).
        open_outputs: Whether nothing declares what it returns; what runs after it can't be checked beforehand.
    """

    name: str
    description: str = ""
    inputs: Mapping[str, FieldSpec] = field(default_factory=dict)
    outputs: Mapping[str, FieldSpec] = field(default_factory=dict)
    open_inputs: bool = False
    open_outputs: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON-compatible data, for discovery by other programs."""

        def shown(spec: FieldSpec) -> dict[str, Any]:
            entry: dict[str, Any] = {"type": spec.type_name, "required": spec.required}
            if spec.desc:
                entry["desc"] = spec.desc
            if not spec.required:
                entry["default"] = spec.default if isinstance(spec.default, _JSON_SCALARS) else repr(spec.default)
            return entry

        return {
            "name": self.name,
            "description": self.description,
            "inputs": {name: shown(spec) for name, spec in self.inputs.items()},
            "outputs": {
                name: {k: v for k, v in shown(spec).items() if k in ("type", "desc")}
                for name, spec in self.outputs.items()
            },
        }

    def __str__(self) -> str:
        takes = ", ".join(name if spec.required else f"{name}?" for name, spec in self.inputs.items())
        return f"{self.name}: {takes}{', **' if self.open_inputs else ''} -> {', '.join(self.outputs) or '?'}"


_JSON_SCALARS = (str, int, float, bool, type(None))


@runtime_checkable
class Runnable(Protocol):
    """Whatever can take an agent's place: agents, flows, and objects of your own."""

    name: str

    async def run(self, context: Any = None, /, **inputs: Any) -> Mapping[str, Any]:
        """Do the work and return the outputs by name."""
        ...


def check_inputs(signature: AgentSignature, inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that are not declared, and runs that lack a required one.

    Raises:
        AgentInputError: Naming the field, the nearest names, and what the agent takes.
    """
    if not signature.open_inputs:
        for name in inputs:
            if name not in signature.inputs:
                takes = ", ".join(signature.inputs) or "no inputs"
                raise AgentInputError(
                    f"agent {signature.name!r} has no input {name!r}.{nearest(name, signature.inputs)} "
                    f"It takes: {takes}.",
                    agent=signature.name,
                )
    missing = [name for name, spec in signature.inputs.items() if spec.required and name not in inputs]
    if missing:
        raise AgentInputError(
            f"agent {signature.name!r} needs {', '.join(map(repr, missing))}; it was given "
            f"{', '.join(inputs) or 'nothing'}",
            agent=signature.name,
        )


def signature_inputs(signature: type[dspy.Signature]) -> dict[str, FieldSpec]:
    """The input fields of a DSPy Signature."""
    return {name: _from_field(name, info) for name, info in signature.input_fields.items()}


def signature_outputs(signature: type[dspy.Signature]) -> dict[str, FieldSpec]:
    """The output fields of a DSPy Signature."""
    return {
        name: dataclasses.replace(_from_field(name, info), required=True, default=None)
        for name, info in signature.output_fields.items()
    }


def _from_field(name: str, info: Any) -> FieldSpec:
    required = bool(info.is_required())
    desc = str((info.json_schema_extra or {}).get("desc") or "")
    return FieldSpec(
        name,
        type=info.annotation,
        required=required,
        default=None if required else info.get_default(call_default_factory=True),
        # DSPy's own stand-in for "no description".
        desc="" if desc == f"${{{name}}}" else desc,
    )


def signature_of_function(
    name: str, description: str, function: Callable[..., Any], declared: type[dspy.Signature] | None
) -> AgentSignature:
    """Read an agent's signature from its ``forward`` or ``aforward`` and its DSPy Signature, if it has one."""
    parameters = _parameters(function)
    hints = _hints(function)
    known = signature_inputs(declared) if declared is not None else {}
    inputs: dict[str, FieldSpec] = {}
    takes_anything = False
    for parameter in parameters[1:]:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            takes_anything = True
            continue
        spec = known.get(parameter.name, FieldSpec(parameter.name))
        required = parameter.default is inspect.Parameter.empty
        inputs[parameter.name] = dataclasses.replace(
            spec,
            type=hints.get(parameter.name, spec.type),
            required=required,
            default=None if required else parameter.default,
        )
    if takes_anything:
        inputs = {**inputs, **{field_name: spec for field_name, spec in known.items() if field_name not in inputs}}
    outputs = signature_outputs(declared) if declared is not None else _annotated_outputs(hints.get("return"))
    return AgentSignature(
        name,
        description,
        inputs,
        outputs or {},
        open_inputs=takes_anything and declared is None,
        open_outputs=outputs is None,
    )


def check_parameters(owner: str, function: Callable[..., Any]) -> None:
    """Refuse a ``forward`` whose parameters can't be given by name after a leading context.

    Raises:
        AgentError: It takes no ``context`` first, or takes ``*args``.
    """
    label = f"{owner}.{getattr(function, '__name__', 'forward')}"
    parameters = _parameters(function)
    first = parameters[0] if parameters else None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if (
        first is None
        or first.kind not in positional
        or not (first.name in CONTEXT_NAMES or first.name.startswith("_") or "Memory" in str(first.annotation))
    ):
        raise AgentError(f"{label} must take the context first: def {label.split('.')[-1]}(self, context, ...)")
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise AgentError(f"{label} takes {parameter.name!r} by position, but inputs are given by name")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters after ``self``."""
    return list(inspect.signature(function).parameters.values())[1:]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations, resolved where their names are known at run time (those under ``TYPE_CHECKING`` are not)."""
    function = inspect.unwrap(function)
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        resolved: dict[str, Any] = {}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            probe = type("probe", (), {"__annotations__": {name: annotation}, "__module__": function.__module__})
            try:
                resolved.update(get_type_hints(probe, include_extras=True))
            except (NameError, TypeError, AttributeError, SyntaxError):
                continue
        return resolved


def _annotated_outputs(annotation: Any) -> dict[str, FieldSpec] | None:
    """The fields a return annotation names, or None when it names none."""
    if annotation is type(None):
        return {}
    if is_typeddict(annotation):
        required = annotation.__required_keys__
        return {name: FieldSpec(name, hint) for name, hint in get_type_hints(annotation).items() if name in required}
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return {
            name: FieldSpec(name, info.annotation, desc=info.description or "")
            for name, info in annotation.model_fields.items()
        }
    if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation):
        return {item.name: FieldSpec(item.name, item.type) for item in dataclasses.fields(annotation)}
    return None
