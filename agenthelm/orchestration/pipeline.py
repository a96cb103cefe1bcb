"""Agents one after the other, over a growing state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from agenthelm._runtime.context import current_run, raise_if_stopped
from agenthelm.agent.signature import AgentSignature, FieldSpec, Runnable
from agenthelm.exceptions import AgentOutputError
from agenthelm.orchestration.wiring import (
    TASK,
    Checked,
    Supply,
    check_component,
    chosen_inputs,
    component_name,
    components,
    signature_of,
)
from agenthelm.tracing import spans

__all__ = ["Pipeline", "as_result", "flow_span", "merged"]


class Pipeline:
    """Runs agents in order; each gets the inputs it declares from what was given and returned before it.

    The state begins with the inputs. Each result joins it, later ones over earlier ones, except that nobody overwrites
    ``task``. Declared outputs fill any input of that name; extra keys fill only inputs that have a default. An agent
    without an input called ``task`` gets the task in its first required ``str`` input that nothing else provides.

    Args:
        agents: Agents, flows, or objects with ``run(context, /, **inputs)``.
        name: What it is called; by default the names of its agents.

    Raises:
        WiringError: There are no agents, one can't be run, or two share a name.
    """

    def __init__(self, agents: Iterable[Runnable], name: str | None = None) -> None:
        self.agents: tuple[Runnable, ...] = components("Pipeline", agents)
        self.name: str = name or " > ".join(component_name(agent) for agent in self.agents)

    def get_signature(self) -> AgentSignature:
        """What must be given to it, and what its agents declare to return."""
        inputs: dict[str, FieldSpec] = {}
        outputs: dict[str, FieldSpec] = {}
        is_open = open_inputs = False
        for signature in map(signature_of, self.agents):
            for name, spec in signature.inputs.items():
                if name not in outputs:
                    inputs[name] = merged(inputs.get(name), replace(spec, required=spec.required and not is_open))
            outputs.update((name, spec) for name, spec in signature.outputs.items() if name != TASK)
            is_open = is_open or signature.open_outputs
            open_inputs = open_inputs or signature.open_inputs
        return AgentSignature(
            self.name,
            f"{len(self.agents)} in a row",
            inputs,
            outputs,
            open_inputs=open_inputs,
            open_outputs=is_open,
        )

    def check(self, available: Supply | Iterable[str] = (TASK,)) -> None:
        """Make sure that every required input will be there, before anything runs.

        Args:
            available: The names of the inputs it will be given.

        Raises:
            WiringError: Which agent, which field, and what is available at that point. Downstream of an agent that
                declares no outputs nothing can be missing beforehand.
        """
        supply = Supply.of(available)
        for agent in self.agents:
            signature = signature_of(agent)
            check_component(agent, signature, supply)
            supply = supply.after(signature)

    async def run(self, context: Any = None, /, **inputs: Any) -> dict[str, Any]:
        """Run the agents in order.

        Returns:
            The final state, without ``task``.

        Raises:
            WiringError: The fields don't fit; nothing ran. (Or, downstream of an agent that declares no outputs, a
                field turned out to be missing.)
            Exception: The failure of an agent; those after it don't run.
        """
        self.check(inputs)
        state: dict[str, Any] = dict(inputs)
        supply = Supply.of(inputs)
        for agent in self.agents:
            raise_if_stopped()
            signature = signature_of(agent)
            given = chosen_inputs(agent, signature, supply, state)
            with flow_span(agent):
                result = as_result(agent, await agent.run(context, **given))
            state.update((name, value) for name, value in result.items() if name != TASK)
            supply = supply.with_result(signature, result)
        state.pop(TASK, None)
        return state

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(component_name(agent) for agent in self.agents)})"


def merged(known: FieldSpec | None, spec: FieldSpec) -> FieldSpec:
    """One input that several agents take: required if one of them requires it."""
    if known is None or (spec.required and not known.required):
        return spec
    return known


def flow_span(component: Any) -> AbstractContextManager[Any]:
    """A span around a flow inside another one; an agent opens its own, and a run the one of its outermost flow."""
    if not isinstance(component, Checked):
        return nullcontext()
    running = current_run()
    return spans.workflow(
        component_name(component),
        run_id=running.run_id if running is not None else None,
        session_id=running.session_id if running is not None else None,
        namespace=running.namespace if running is not None else None,
    )


def as_result(component: Any, value: Any) -> Mapping[str, Any]:
    """What a component returned, if it is a mapping.

    Raises:
        AgentOutputError: It is something else.
    """
    if isinstance(value, Mapping):
        return value
    name = component_name(component)
    raise AgentOutputError(f"{name!r} returned a {type(value).__name__}; `run` must return a dict", agent=name)
