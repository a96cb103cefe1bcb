"""The loop in which an LM chooses among tools: think, call, observe, until it can answer.

It stands on ``dspy.Predict`` alone. DSPy's own ReAct changes its shape between releases, ends with a parser's error
when the LM names a tool it was not given, shows tracebacks to the LM, and swallows every exception of a tool, also
those that must end a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import dspy
from pydantic_core import to_jsonable_python

from agenthelm._runtime.context import raise_if_stopped
from agenthelm.agent.bridge import await_from_sync
from agenthelm.agent.ending import cut_off, watched_ending
from agenthelm.agent.toolset import Toolset
from agenthelm.core.redaction import masked
from agenthelm.core.sensitive import without_marked
from agenthelm.exceptions import (
    AgentError,
    ApprovalDeniedError,
    BudgetExceededError,
    LeaseLostError,
    ModelCallError,
    StorageError,
)
from agenthelm.telling import describe

__all__ = ["DEFAULT_STEPS", "ToolLoop"]

DEFAULT_STEPS = 20
"""Tool calls after which the LM must answer with what it knows."""

FINISH = "finish"
_TRAJECTORY = "trajectory"
_OWN_FIELDS = frozenset({_TRAJECTORY, "next_thought", "next_tool_name", "next_tool_args"})
_MISREADINGS = 3
_LONGEST: Final = 100_000
"""Characters of one result that the LM is shown; a larger one would fill its context window by itself."""
_DEEPEST: Final = 100
"""Levels of nesting in arguments; a journal can't hold what is much deeper, and nothing could undo the call later."""
_LINE_BREAK: Final = re.compile(r"\r\n?|[\n\x85\u2028\u2029]")
_INDENTED: Final = r"\g<0>    "
_STOPS = (BudgetExceededError, LeaseLostError, StorageError)


@dataclass(frozen=True, slots=True)
class _Turn:
    thought: str
    tool: str
    arguments: str
    observation: str

    def __str__(self) -> str:
        told = {
            "thought": self.thought,
            "tool": self.tool,
            "arguments": self.arguments,
            "observation": self.observation,
        }
        # Indented, so that no line of what a tool returned can pose as a turn, or as a field of the prompt.
        return "\n".join(f"{name}: {_LINE_BREAK.sub(_INDENTED, text)}" for name, text in told.items())


class ToolLoop(dspy.Module):
    """Fills a Signature with the help of tools; sync, for a worker thread.

    Errors and denials of tools are observations of one line. What ends a run ends the loop at once: a used-up budget, a
    final denial, a lost lease, a log that can't be written, a cancellation. What an answer chose that the model did not
    finish is not called.

    Args:
        signature: What to fill.
        tools: What the LM may choose from.
        max_steps: Tool calls after which it must answer with what it knows.
    """

    def __init__(self, signature: type[dspy.Signature], tools: Toolset, *, max_steps: int = DEFAULT_STEPS) -> None:
        super().__init__()
        if FINISH in tools:
            raise AgentError(f"an agent can't be given a tool named {FINISH!r}: that is how its LM ends the work")
        taken = sorted(_OWN_FIELDS & signature.input_fields.keys() | {_TRAJECTORY} & signature.output_fields.keys())
        if taken:
            raise AgentError(f"an agent with tools can't have a field named {taken[0]!r}: the loop of its LM has one")
        if max_steps < 1:
            raise AgentError(f"an agent with tools needs at least one step, not {max_steps}")
        self.signature = signature
        self.tools = tools
        self.max_steps = max_steps
        choices = Literal[(FINISH, *tools)]  # type: ignore[valid-type]
        self.choose: Any = dspy.Predict(
            dspy.Signature(dict(signature.input_fields), _instructions(signature, tools))
            .append("trajectory", dspy.InputField(desc="what was done and observed so far"), str)
            .append("next_thought", dspy.OutputField(), str)
            .append("next_tool_name", dspy.OutputField(), choices)
            .append("next_tool_args", dspy.OutputField(desc="a JSON object"), dict[str, Any])
        )
        self.answer: Any = dspy.ChainOfThought(
            signature.append("trajectory", dspy.InputField(desc="what was done and observed"), str)
        )

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Let the LM work with the tools, then answer."""
        turns: list[_Turn] = []
        misread = 0
        for _ in range(self.max_steps):
            raise_if_stopped()
            choice: Any = None
            unread: Exception | None = None
            with watched_ending() as ending:
                try:
                    choice = _ask(self.choose, turns, inputs)
                except (dspy.AdapterParseError, RecursionError) as error:  # the latter of JSON too deep for its parser
                    unread = error
            if choice is not None and choice.next_tool_name == FINISH:
                break
            if choice is None or ending.cut:  # DSPy closes what is cut off, and reads 99 where 9900 was meant
                raise_if_stopped()
                misread += 1
                if misread == _MISREADINGS:
                    raise _cut_off() if unread is None or ending.cut else unread
                turns.append(_Turn("", "?", "", self._refusal(cut=ending.cut)))
                continue
            misread = 0
            arguments = choice.next_tool_args or {}
            thought = _fit(str(choice.next_thought or ""))
            observation = self._observe(choice.next_tool_name, arguments, thought)
            turns.append(_Turn(thought, choice.next_tool_name, _shown(arguments), observation))
        raise_if_stopped()
        answer = _ask(self.answer, turns, inputs)
        return dspy.Prediction(**{name: answer[name] for name in self.signature.output_fields})

    def _refusal(self, *, cut: bool) -> str:
        """What the LM is told of a choice that can't be taken for one."""
        if cut:
            return "refused: your answer was cut off before its end, so nothing was called; write less in each step"
        return f"refused: name one of {', '.join([*self.tools, FINISH])}, with its arguments as a JSON object"

    def _observe(self, name: str, arguments: Mapping[str, Any], thought: str) -> str:
        """One tool call, and what the LM is told of it."""
        if _is_deeper(arguments, _DEEPEST):
            return f"refused: the arguments are nested more than {_DEEPEST} levels deep"
        try:
            result = await_from_sync(self.tools.call, name, arguments, thought)
            return _shown(self.tools[name].binding.shown(result))
        except _STOPS:
            raise
        except ApprovalDeniedError as denied:
            raise_if_stopped()
            return _fit(f"denied by {denied.approver}: {denied.reason}")
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is an observation
            raise_if_stopped()
            return _fit(f"error: {describe(error)}")


def _cut_off() -> ModelCallError:
    model = str(getattr(dspy.settings.lm, "model", None) or "the model")
    what = f"the answers of model {model!r} were cut off, {_MISREADINGS} in a row, so no tool was called by them"
    return cut_off(what, model, attempts=_MISREADINGS)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether JSON data is nested more than so many levels deep."""
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(
        _is_deeper(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _ask(predictor: dspy.Module, turns: list[_Turn], inputs: Mapping[str, Any]) -> Any:
    """One prediction over the turns so far; the oldest are forgotten where the context window is too small."""
    while True:
        trajectory = "\n\n".join(f"[{number}]\n{turn}" for number, turn in enumerate(turns, 1)) or "nothing yet"
        try:
            return predictor(**inputs, trajectory=trajectory)
        except dspy.ContextWindowExceededError:
            if len(turns) < 2:
                raise
            del turns[: (len(turns) + 1) // 2]


def _instructions(signature: type[dspy.Signature], tools: Toolset) -> str:
    outputs = ", ".join(f"`{name}`" for name in signature.output_fields)
    work = (
        f"You work step by step with tools until you can produce {outputs}. In each step you see what was done and "
        "observed so far; say in `next_thought` what you need, and choose `next_tool_name` and `next_tool_args`. "
        "Errors and denials are observations: find another way, or finish with what you know."
    )
    offer = f"The tools, each with the JSON schema of its arguments; `{FINISH}`, without arguments, ends the work:"
    lines = [signature.instructions, "", work, offer]
    for tool in tools.values():
        schema = json.dumps(tool.json_schema, ensure_ascii=False, default=str)
        lines.append(f"- {tool.name}: {tool.description or 'no description'} Arguments: {schema}")
    return "\n".join(lines).strip()


def _shown(value: Any) -> str:
    """A value as the LM reads it: as JSON, without what is marked `Redacted`."""
    if isinstance(value, str):
        return _fit(value)
    try:
        copy = str(value) if isinstance(value, Iterator) else to_jsonable_python(value, by_alias=False, fallback=str)
        text = json.dumps(without_marked(value, copy), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # bytes that are no text, numbers too long to print, cycles
        text = json.dumps(masked(value), ensure_ascii=False)
    return _fit(text)


def _fit(text: str) -> str:
    """A text that fits into a prompt, and that UTF-8 can carry."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… <{_LONGEST} of {len(text)} characters>"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
