"""Sagas written down: YAML or JSON files of steps."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agenthelm.cli._options import expanded
from agenthelm.exceptions import PlanError, nearest

if TYPE_CHECKING:
    from agenthelm.core.tool import ToolRegistry
    from agenthelm.orchestration.plan import Step

__all__ = ["preview", "read"]

_OPTIONS = {name: f" Say it to the command: --{name.replace('_', '-')}." for name in ("on_error", "timeout", "budget")}
_LONGEST = 10_000_000
"""What the aliases of a file may stand for, in characters and values; a few lines of them could fill the memory."""
_FIELDS = ("tool", "arguments", "id", "depends_on", "compensate_with")


def read(
    path: Path, inputs: Mapping[str, str] | None = None, *, tools: ToolRegistry
) -> tuple[str, list[Step | list[Step]]]:
    """The name and the steps of a file: a list (nested lists run at once), or a mapping with such a list under ``steps``.

    The name is what a mapping has under ``name``, else the file's.

    A step is ``{tool, arguments, id, depends_on, compensate_with}``; ``{"$ref": "step.field"}`` in arguments stands for
    an earlier result, and ``{"$input": "name"}`` for what was given to this run.

    Args:
        path: The file.
        inputs: What was given, as texts; one that is JSON means what JSON says, unless its tool takes only the text.
        tools: What knows the tools of the steps.

    Raises:
        PlanError: The file can't be read or is no plan, it names the step; or the inputs are not those that it takes.
    """
    try:
        text = expanded(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise PlanError(f"can't read {path}: {getattr(exc, 'strerror', None) or exc}") from exc
    document = _parsed(path, text)
    name = path.stem
    if isinstance(document, Mapping):
        if unknown := [key for key in document if key not in ("steps", "name")]:
            hint = _OPTIONS.get(unknown[0], nearest(unknown[0], ("steps", "name")))
            raise PlanError(f"{path}: unknown key {unknown[0]!r}.{hint}")
        name = document.get("name", name)
        document = document.get("steps")
    if not isinstance(name, str) or not name.strip():
        raise PlanError(f"{path}: name must be a text, not {name!r:.80}")
    if not isinstance(document, list) or not document:
        raise PlanError(f"{path} holds no steps; write a list of steps, or one under the key steps")
    given = _Inputs(path, inputs or {}, tools)
    steps: list[Step | list[Step]] = []
    for number, entry in enumerate(document, 1):
        if isinstance(entry, list):
            if any(isinstance(item, list) for item in entry):
                raise PlanError(
                    f"{path}, step {number}: a list of steps that run at once holds no further list; give each step of "
                    "the file an id, and say with depends_on what waits for what"
                )
            steps.append([_step(given, f"{number}.{inner}", item) for inner, item in enumerate(entry, 1)])
        else:
            steps.append(_step(given, str(number), entry))
    given.refuse_unknown()
    return name, steps


def _parsed(path: Path, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            _refuse_twice(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return node

    def entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_twice(name for name, _ in pairs)
        return dict(pairs)

    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        if kind == "JSON":
            document = jsonlib.loads(text, object_pairs_hook=entries)
        else:
            document = yaml.load(text, Loader)  # noqa: S506 - a safe loader
        if _size(document, {}) > len(text) + _LONGEST:
            raise _RefusedError("its aliases (*) stand for too much; write out what is needed")
    except _RefusedError as exc:
        raise PlanError(f"{path}: {exc}") from None
    except RecursionError:
        raise PlanError(f"{path} is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as exc:
        raise PlanError(f"{path} is not valid {kind}: {' '.join(str(exc).split())}") from exc
    return document


class _RefusedError(ValueError):
    """What the parsers take, and no plan may hold."""


def _refuse_twice(names: Iterable[str]) -> None:
    """Refuse a key that stands twice in a mapping, where the parsers would take the last and drop the others unseen."""
    counted = Counter(names)
    if twice := [name for name, count in counted.items() if count > 1]:
        raise _RefusedError(f"the key {twice[0]!r} stands twice in one mapping; only one of them could count")


def _size(value: Any, known: dict[int, int]) -> int:
    """How long a document is with all its aliases written out, in characters and values; what contains itself counts once.

    Args:
        value: The document.
        known: What is known already, by the ids of collections.
    """
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, Mapping | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = 0
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a run of a file is given, and what the file takes of it."""

    path: Path
    given: Mapping[str, str]
    tools: ToolRegistry
    taken: set[str] = field(default_factory=set)

    def argument(self, tool: str, name: str, value: Any) -> Any:
        """An argument of a tool, with inputs in the places of ``$input``."""
        from agenthelm.orchestration.plan import from_data

        filled = from_data(self.fill(value))
        whole = isinstance(value, Mapping) and "$input" in value
        text = self.given.get(value["$input"]) if whole else None
        binding = self.tools[tool].binding if tool in self.tools else None
        if text is None or binding is None or name not in binding.unfit({name: filled}):
            return filled
        # A version 1.10 is no number, although JSON has one that is written like it.
        return filled if name in binding.unfit({name: text}) else text

    def fill(self, value: Any) -> Any:
        """A structure with inputs in the places of ``$input``; none of them is taken for anything but a value."""
        from agenthelm.cli._session import meant
        from agenthelm.orchestration.plan import to_data

        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not isinstance(value, Mapping) or set(value) == {"$literal"}:
            return value
        if "$input" not in value:
            return {key: self.fill(item) for key, item in value.items()}
        name = value["$input"]
        if not isinstance(name, str) or not value.keys() <= {"$input", "default"}:
            raise PlanError(f"{self.path}: write {{$input: name}}, or a default beside it, not {value!r:.80}")
        self.taken.add(name)
        if name not in self.given and "default" not in value:
            raise PlanError(f"{self.path} takes an input {name!r}; give it with --input {name}=VALUE")
        return to_data(meant(self.given[name]) if name in self.given else value["default"])

    def refuse_unknown(self) -> None:
        """Refuse what was given and stands nowhere in the file."""
        for name in self.given:
            if name not in self.taken:
                takes = ", ".join(sorted(self.taken)) or "none"
                raise PlanError(f"{self.path} takes no input {name!r}.{nearest(name, self.taken)} It takes: {takes}.")


def _step(inputs: _Inputs, number: str, entry: Any) -> Step:
    from agenthelm.orchestration.plan import Step

    def refuse(what: str) -> PlanError:
        return PlanError(f"{inputs.path}, step {number}: {what}")

    if isinstance(entry, Mapping) and (unknown := [key for key in entry if key not in _FIELDS]):
        raise refuse(f"unknown key {unknown[0]!r}.{nearest(unknown[0], _FIELDS)}")
    if not isinstance(entry, Mapping) or not isinstance(entry.get("tool"), str):
        raise refuse("a step needs a tool, as in {tool: book_hotel, arguments: {city: Lisbon}}")
    arguments, after = ({} if entry.get(key) is None else entry[key] for key in ("arguments", "depends_on"))
    if not isinstance(arguments, Mapping):
        raise refuse("arguments must be names and values")
    name, undo = entry.get("id"), entry.get("compensate_with")
    after = list(after) if isinstance(after, list | Mapping) else [after]
    if not all(isinstance(step, str | int) for step in ([] if name is None else [name]) + after):
        raise refuse("id and depends_on must be names of steps")
    if undo is not None and not isinstance(undo, str):
        raise refuse("compensate_with must be the name of a tool")
    try:
        given = {str(name): inputs.argument(entry["tool"], str(name), value) for name, value in arguments.items()}
    except RecursionError:
        raise refuse("the arguments contain themselves") from None
    return Step(
        entry["tool"],
        given,
        id=None if name is None else str(name),
        depends_on=tuple(map(str, after)),
        compensate_with=undo,
    )


def preview(steps: list[Step | list[Step]], tools: ToolRegistry, *, json: bool) -> None:
    """Print in which order steps would run, what would undo each, and what could not be undone.

    Raises:
        PlanError: The plan would be refused.
    """
    from agenthelm.cli import _console, _tables
    from agenthelm.orchestration.plan import Plan

    plan = Plan.of(steps)
    plan.check_tools(tools)
    rows: list[dict[str, Any]] = []
    for wave, names in enumerate(plan.order(), 1):
        for name in names:
            step = plan.steps[name]
            contract = tools[step.tool_name].contract
            undo = step.compensate_with or contract.compensating_tool
            rows.append(
                {
                    "order": wave,
                    "step": name,
                    "tool": step.tool_name,
                    "arguments": _written(step.arguments),
                    "undone_by": undo,
                    "irreversible": undo is None and contract.changes_something,
                }
            )
    if json:
        _console.print_json(rows)
        return
    shown = [
        (
            row["order"], row["step"], row["tool"], _console.clean(row["arguments"], width=60),
            row["undone_by"] or ("CAN'T be undone" if row["irreversible"] else "nothing to undo"),
        )
        for row in rows
    ]  # fmt: skip
    _tables.print_table(["#order", "!step", "!tool", "arguments", "undone by"], shown)


def _written(value: Any) -> Any:
    """Arguments as they stand in the file."""
    from agenthelm.orchestration.plan import Ref

    if isinstance(value, Ref):
        return {"$ref": f"{value.step}.{value.path}" if value.path else value.step}
    if isinstance(value, Mapping):
        return {name: _written(item) for name, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, list | tuple) else value
