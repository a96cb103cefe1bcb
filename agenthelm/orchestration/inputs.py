"""What a run is given, held against what its flow declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agenthelm.agent.signature import Runnable
from agenthelm.exceptions import AgentInputError, nearest
from agenthelm.orchestration.wiring import TASK, Checked, Supply, component_name, fitting, select, signature_of

__all__ = ["given"]


def given(flow: Runnable, task: str | None, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a run, checked against what the flow declares.

    Raises:
        WiringError: A component lacks an input.
        AgentInputError: An input is not taken, is of the wrong type, or is the task a second time.
    """
    name, signature = component_name(flow), signature_of(flow)
    if not isinstance(inputs, Mapping) or not all(isinstance(key, str) for key in inputs):
        raise AgentInputError(f"inputs must be a dict from names to values, not {inputs!r:.80}", agent=name)
    if task is not None:
        if not isinstance(task, str):
            raise AgentInputError(f"the task must be a text, not {task!r:.80}", agent=name)
        if not task.strip():
            raise AgentInputError("the task is empty; say what is to be done", agent=name)
        if TASK in inputs:
            raise AgentInputError(f"the task was given twice; leave {TASK!r} out of the inputs", agent=name)
        inputs = {TASK: task, **inputs}
    inputs = {key: fitting(signature, key, value) for key, value in inputs.items()}
    supply = Supply.of(inputs)
    if isinstance(flow, Checked):
        flow.check(supply)
        return inputs
    chosen = select(signature, supply, is_flow=False)
    unknown = next((key for key in inputs if key != TASK and key not in chosen), None)
    if unknown is not None:
        takes = ", ".join(signature.inputs) or "nothing"
        hint = nearest(unknown, signature.inputs)
        raise AgentInputError(f"agent {name!r} takes no {unknown!r}.{hint} It takes: {takes}.", agent=name)
    return {key: inputs[source] for key, source in chosen.items()}
