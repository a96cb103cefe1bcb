"""How the fields of a flow fit together: who provides what, checked before the first LM call."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Union, get_args, get_origin, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from agenthelm.agent.signature import AgentSignature, FieldSpec, Runnable
from agenthelm.exceptions import AgentInputError, WiringError, nearest

__all__ = [
    "TASK",
    "Checked",
    "Supply",
    "check_component",
    "chosen_inputs",
    "component",
    "component_name",
    "component_names",
    "components",
    "fitting",
    "select",
    "signature_of",
]

TASK = "task"
"""Where a flow carries what the run is about; no agent overwrites it."""

_PLAIN = (str, int, float, bool, types.NoneType, Any, ...)
_HOLDERS = (list, dict, set, tuple, types.UnionType, Union)


@dataclass(frozen=True, slots=True)
class Supply:
    """What a flow provides at one point.

    Attributes:
        declared: Fields that somebody declared: inputs of the flow and declared outputs of what ran before.
        extras: Fields that were returned without being declared; known at run time only.
        open: Whether something upstream declares no outputs, so that nothing can be called missing beforehand.
    """

    declared: frozenset[str] = frozenset()
    extras: frozenset[str] = frozenset()
    open: bool = False

    @classmethod
    def of(cls, available: Supply | Iterable[str]) -> Supply:
        """The supply itself, or one of declared names."""
        return available if isinstance(available, Supply) else cls(frozenset(available))

    def after(self, signature: AgentSignature) -> Supply:
        """What is provided once a component of that signature has run."""
        return replace(
            self,
            declared=self.declared | (signature.outputs.keys() - {TASK}),
            open=self.open or signature.open_outputs,
        )

    def with_result(self, signature: AgentSignature, result: Iterable[str]) -> Supply:
        """What is provided once a component has returned these fields."""
        returned = frozenset(result) - {TASK}
        declared = returned if signature.open_outputs else returned & signature.outputs.keys()
        return replace(self, declared=self.declared | declared, extras=self.extras | returned)


@runtime_checkable
class Checked(Protocol):
    """A component that checks its own inside: a nested flow."""

    def check(self, available: Supply | Iterable[str] = (TASK,)) -> None:
        """Raise `WiringError` if it could not run with what is available."""
        ...


def components(flow: str, items: Iterable[Any]) -> tuple[Any, ...]:
    """The components of a flow.

    Raises:
        WiringError: There are none, one can't be run, or two share a name.
    """
    if callable(getattr(items, "run", None)):
        raise WiringError(
            f"a {flow} takes a list of agents: [{component_name(items)}] instead of {component_name(items)}"
        )
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise WiringError(f"a {flow} takes a list of agents, not {items!r:.80}")
    found = tuple(items)
    if not found:
        raise WiringError(f"a {flow} needs at least one agent")
    seen: set[str] = set()
    for item in found:
        name = component_name(component(f"a {flow}", item))
        if name in seen:
            raise WiringError(f"a {flow} has two agents named {name!r}; give one another name", agent=name)
        seen.add(name)
    return found


def component(owner: str, item: Any) -> Any:
    """A component, if it can be run; ``owner`` is who takes it.

    Raises:
        WiringError: It can't.
    """
    if inspect.isclass(item):
        raise WiringError(f"{owner} takes instances: {item.__name__}() instead of {item.__name__}")
    if isinstance(item, str):
        raise WiringError(f"{owner} takes agents, not their names: AGENT_REGISTRY[{item!r}] instead of {item!r}")
    if isinstance(item, list | tuple):
        made = "make a flow of it with Pipeline([...]) or Parallel([...])"
        raise WiringError(f"{owner} takes agents and flows, not a {type(item).__name__}: {made}")
    if not callable(getattr(item, "run", None)):
        raise WiringError(f"{owner} takes agents, flows and objects with `run(context, /, **inputs)`, not {item!r:.80}")
    return item


def component_names(flow: Any) -> Iterator[str]:
    """The names of a component and of those inside it, as far as they are known."""
    yield component_name(flow)
    inside = getattr(flow, "agents", None) if isinstance(flow, Checked) else None
    for item in inside if isinstance(inside, Sequence) else ():
        yield from component_names(item)


def component_name(component: Any) -> str:
    """The name a component is known by."""
    name = getattr(component, "name", None)
    return name if isinstance(name, str) and name else type(component).__name__


def signature_of(component: Runnable) -> AgentSignature:
    """What a component takes and gives.

    Objects of your own may say so by ``get_signature()``, or by ``inputs`` and ``outputs`` (names, or names with types);
    else the named parameters of ``run`` are the inputs, and the outputs are unknown.
    """
    describe = getattr(component, "get_signature", None)
    if callable(describe):
        return describe()  # type: ignore[no-any-return]
    inputs, open_inputs = _fields(getattr(component, "inputs", None)), False
    if inputs is None:
        inputs, open_inputs = _parameters(component)
    outputs = _fields(getattr(component, "outputs", None))
    return AgentSignature(
        component_name(component),
        (inspect.getdoc(type(component)) or "").split("\n", 1)[0],
        inputs,
        outputs or {},
        open_inputs=open_inputs,
        open_outputs=outputs is None,
    )


def select(signature: AgentSignature, supply: Supply, *, is_flow: bool) -> dict[str, str]:
    """Which field of the state fills which input of a component.

    Returns:
        Input name -> field name.

    Raises:
        WiringError: Nothing provides a required input.
    """
    provided = supply.declared | (supply.extras if supply.open else frozenset())
    if signature.open_inputs:
        chosen = {name: name for name in sorted(supply.declared | supply.extras)}
    else:
        chosen = {
            name: name
            for name, spec in signature.inputs.items()
            if name in provided or (not spec.required and name in supply.extras)
        }
    if is_flow:
        # A nested flow hands the task to its own agents, and checks its own fields.
        if TASK in supply.declared:
            chosen[TASK] = TASK
        return chosen
    missing = [name for name, spec in signature.inputs.items() if spec.required and name not in chosen]
    if TASK in supply.declared and TASK not in signature.inputs:
        takes_task = next((name for name in missing if signature.inputs[name].type in (str, Any)), None)
        if takes_task is not None:
            chosen[takes_task] = TASK
            missing.remove(takes_task)
    if missing and not supply.open:
        raise missing_input(signature.name, missing[0], supply)
    return chosen


def fitting(signature: AgentSignature, name: str, value: Any) -> Any:
    """An input that a caller gave, as its declared type; what is not made of plain types is left to whoever reads it.

    Raises:
        AgentInputError: It can't be made one.
    """
    spec = signature.inputs.get(name)
    if spec is None or not _is_plain(spec.type):
        return value
    if spec.type is Any or (get_origin(spec.type) is None and isinstance(value, spec.type)):
        return value
    if not spec.required and value is spec.default:
        return value
    try:
        return TypeAdapter(spec.type).validate_python(value)
    except ValidationError:
        raise AgentInputError(
            f"{signature.name!r} takes {name!r} as {spec.type_name}, not {value!r:.80}", agent=signature.name
        ) from None


def _is_plain(hint: Any) -> bool:
    """Whether a type is made of plain ones alone, so that reading a value as one does nothing else."""
    holder = get_origin(hint) or hint
    return holder is Literal or hint in _PLAIN or (holder in _HOLDERS and all(map(_is_plain, get_args(hint))))


def missing_input(agent: str, name: str, supply: Supply) -> WiringError:
    """The error for a required input that nothing provides."""
    available: Sequence[str] = sorted(supply.declared)
    undeclared = sorted(supply.extras - supply.declared)
    hint = nearest(name, available)
    if name in undeclared:
        hint = f" {name!r} was returned without being declared as an output, so it fills only inputs with a default."
    return WiringError(
        f"agent {agent!r} needs {name!r}, which nothing before it provides; available: "
        f"{', '.join(available) or 'nothing'}.{hint}",
        agent=agent,
        field=name,
        available=available,
    )


def check_component(component: Any, signature: AgentSignature, supply: Supply) -> None:
    """Check one component against what is available when it starts.

    Raises:
        WiringError: Nothing provides a required input of it, or of something nested in it.
    """
    is_flow = isinstance(component, Checked)
    select(signature, supply, is_flow=is_flow)
    if is_flow:
        component.check(supply)


def chosen_inputs(
    component: Any, signature: AgentSignature, supply: Supply, state: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs of one component at run time.

    Raises:
        WiringError: A required input turned out to be missing.
    """
    chosen = select(signature, supply, is_flow=isinstance(component, Checked))
    return {name: state[source] for name, source in chosen.items() if source in state}


def _fields(declared: Any) -> dict[str, FieldSpec] | None:
    if declared is None or callable(declared) or isinstance(declared, str):
        return None
    if isinstance(declared, Mapping):
        return {name: spec if isinstance(spec, FieldSpec) else FieldSpec(name, spec) for name, spec in declared.items()}
    return {name: FieldSpec(name) for name in declared}


def _parameters(component: Any) -> tuple[dict[str, FieldSpec], bool]:
    """The named parameters of a component's ``run`` after the context, and whether it takes any others."""
    inputs: dict[str, FieldSpec] = {}
    takes_anything = False
    for parameter in list(inspect.signature(component.run).parameters.values())[1:]:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            takes_anything = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            required = parameter.default is inspect.Parameter.empty
            hint = parameter.annotation
            inputs[parameter.name] = FieldSpec(
                parameter.name,
                str if hint in (str, "str") else Any if hint is inspect.Parameter.empty else hint,
                required,
                None if required else parameter.default,
            )
    return inputs, takes_anything and not inputs
