"""What it takes to undo an effect: by which tool, with which arguments, and why it may not be possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agenthelm.core.binding import KEY_PARAMETER
from agenthelm.core.compensation import needs_result
from agenthelm.core.sensitive import carries_secret
from agenthelm.core.tool import Tool, ToolRegistry
from agenthelm.orchestration.state import EffectState
from agenthelm.orchestration.values import encode

__all__ = ["Means"]


@dataclass(frozen=True, slots=True)
class Means:
    """Answers for the tools that are registered here. Pure; calls nothing.

    Attributes:
        tools: The registry.
        recorded: Whether the effects were read from a journal, so that contracts may have changed since.
    """

    tools: ToolRegistry
    recorded: bool = False

    def compensator(self, state: EffectState) -> Tool | None:
        """The tool that undoes an effect; None if nothing does, or it is not registered here."""
        name = state.effect.compensating_tool
        return None if name is None else self.tools.get(name)

    def problem(self, state: EffectState) -> str | None:
        """None if the effect is to be undone; ``""`` if there is nothing to undo; else why it can't be."""
        name, wanted = state.effect.tool, state.effect.compensating_tool
        tool, compensator = self.tools.get(name), self.compensator(state)
        if (unknown := self.missing(state)) is not None:
            return f"{unknown} is not registered here; load the app that defines it"
        if state.outcome == "failed" and (tool is None or compensator is None or self.is_anothers(state, tool)):
            return ""
        if tool is None:
            return "no tool undoes it"
        wants_result = compensator is not None and needs_result(tool, compensator)
        harmless = compensator is not None and compensator.contract.idempotent and not wants_result
        if state.outcome == "failed" and not harmless:
            return ""
        if self.recorded and state.contract != tool.fingerprint:
            return f"tool {name!r} has changed its contract since it was called"
        if compensator is None:
            return None if state.doubtful and tool.contract.verify is not None else "no tool undoes it"
        if missing := sorted({p.name for p in compensator.parameters.values() if p.required} & state.lost):
            return f"{wanted} needs {missing[0]!r}, which the journal does not hold"
        if state.outcome == "ok" and wants_result and not state.has_result and tool.contract.verify is None:
            return f"{wanted} needs the result, which is not on record"
        return None

    def missing(self, state: EffectState) -> str | None:
        """What undoing an effect takes and is not registered here; None if nothing is."""
        wanted = state.effect.compensating_tool
        if state.settled or (wanted is None and not state.doubtful):
            return None
        if state.outcome == "failed" and not state.undoing and state.reason is None:
            return None  # there is nothing to undo, and what would be harmless need not be possible
        tool, compensator = self.tools.get(state.effect.tool), self.compensator(state)
        if tool is None:
            return f"tool {state.effect.tool!r}"
        if self.is_anothers(state, tool):
            return f"tool {state.effect.tool!r} of {state.origin}.py"
        certain = lacks_result = False
        if wanted is not None:
            if compensator is None:
                return f"the compensating tool {wanted!r} of {tool.name!r}"
            lacks_result = needs_result(tool, compensator) and not state.has_result and state.outcome != "failed"
            certain = compensator.contract.idempotent and not lacks_result
        if (state.doubtful or state.undoing or lacks_result) and not certain and self._asks_nobody(tool):
            return f"the verify tool {tool.contract.verify!r} of {tool.name!r}"
        return None

    def is_anothers(self, state: EffectState, tool: Tool) -> bool:
        """Whether it was another app's tool of the same name that was called."""
        return self.recorded and bool(state.origin and tool.origin) and state.origin != tool.origin

    def _asks_nobody(self, tool: Tool) -> bool:
        """Whether who could say what happened is not here."""
        return isinstance(tool.contract.verify, str) and tool.contract.verify not in self.tools

    def arguments(self, state: EffectState, compensator: Tool) -> dict[str, Any]:
        """What a compensator is called with, by parameter name.

        The forward arguments come first, then the fields of the result, then the result itself. A secret that the
        compensator does not take as one is left out.
        """
        tool = self.tools[state.effect.tool]
        forward = {**state.arguments(tool), KEY_PARAMETER: state.effect.key}
        available: dict[str, Any] = {}
        if state.has_result and (compensator.binding.open_ended or not compensator.parameters.keys() <= forward.keys()):
            result = state.value(tool)
            available = {"result": result, **tool.binding.fields_of(result)}
            available = {name: value for name, value in available.items() if name not in state.lost}
        available.update(forward)
        given = {
            name: value
            for name, value in available.items()
            if name in compensator.parameters or (compensator.binding.open_ended and name != "result")
        }
        for name in compensator.binding.unfit(given).keys() & given.keys():
            if carries_secret(given[name]):  # whose form is a mask
                del given[name]
                continue
            form, possible = encode(given[name])  # it may want a dict of what is a model, or the text of a date
            given[name] = form if possible else given[name]
        return given

    def hidden(self, state: EffectState) -> frozenset[str]:
        """The names under which a compensator is given what the contract of the tool that it undoes calls secret."""
        tool = self.tools[state.effect.tool]
        binding, arguments = tool.binding, state.arguments(tool)
        secret_result = binding.secret_result or bool(binding.secret_fields)
        results = binding.secret_fields | (frozenset({"result"}) if secret_result else frozenset())
        return binding.sensitive_among(arguments) | (results - arguments.keys())
