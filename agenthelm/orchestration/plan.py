"""Plans: which steps, after which, with what of each other's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from agenthelm._runtime.frozen import changed
from agenthelm.core.binding import KEY_PARAMETER
from agenthelm.core.sensitive import PLAIN, is_plain
from agenthelm.core.tool import Tool, ToolRegistry
from agenthelm.exceptions import PlanError, UnknownToolError, nearest
from agenthelm.orchestration.values import decode

__all__ = ["Plan", "Ref", "Step", "Steps", "from_data", "refs_in", "resolved", "to_data"]


@dataclass(frozen=True, slots=True)
class Ref:
    """An earlier step's result, or a part of it, in a later step's arguments.

    Attributes:
        step: The step.
        path: A field of its result; dots go deeper, numbers index lists. The whole result by default.
    """

    step: str
    path: str = ""

    def of(self, result: Any) -> Any:
        """That part of a result.

        Raises:
            PlanError: It is not there.
        """
        value = result
        for part in self.path.split(".") if self.path else ():
            try:
                if isinstance(value, Mapping):
                    value = value[part]
                elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
                    value = value[int(part)]
                elif part.startswith("_"):  # a plan may come from a file, and this way leads to all that Python holds
                    raise AttributeError(part)
                else:
                    value = getattr(value, part)
            except (KeyError, IndexError, ValueError, AttributeError) as exc:
                raise PlanError(f"the result of step {self.step!r} has no {self.path!r} (at {part!r})") from exc
        return value


@dataclass(frozen=True)  # without slots, for `changed`
class Step:
    """One tool call of a plan.

    Attributes:
        tool_name: The tool.
        arguments: Its arguments; a `Ref` stands for an earlier result.
        id: Its name in the plan; the tool's name by default.
        depends_on: The steps that must have succeeded first.
        compensate_with: Undoes this step, in place of the contract's ``compensating_tool``.
    """

    tool_name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    depends_on: tuple[str, ...] = ()
    compensate_with: str | None = None

    @property
    def name(self) -> str:
        """Its id, or the tool's name."""
        return self.id or self.tool_name


Steps = Iterable["Step | Iterable[Step]"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Checked steps with explicit dependencies.

    Attributes:
        steps: By name, in the order given; each step's ``depends_on`` is complete.
    """

    steps: Mapping[str, Step]

    @classmethod
    def of(cls, steps: Steps) -> Plan:
        """Read a plan: a list is sequential, a nested list concurrent; or ``depends_on`` makes a DAG.

        Raises:
            PlanError: It is no list of steps, is empty, mixes both forms, names a step twice, depends on a step that is
                not there or on itself, or a `Ref` points at a step that does not run before.
        """
        groups = [[entry] if isinstance(entry, Step) else _group(entry) for entry in _group(steps)]
        flat = [step for group in groups for step in group]
        if not flat or not all(groups):
            raise PlanError("a plan needs at least one step, and each of its groups too")
        names = [_checked_name(step) for step in flat]
        if len(set(names)) < len(names):
            twice = min(name for name, count in Counter(names).items() if count > 1)
            raise PlanError(f"two steps are called {twice!r}; give them an id each")
        as_dag = any(step.depends_on for step in flat)
        if as_dag and any(len(group) > 1 for group in groups):
            raise PlanError("a plan is either a list with groups or a DAG by depends_on, not both")
        plan = cls(dict(zip(names, flat if as_dag else _sequential(groups), strict=True)))
        if as_dag:
            plan._check_graph()
        plan._check_refs()
        return plan

    def check_tools(self, tools: ToolRegistry) -> None:
        """Make sure that every step's tool is there, takes what the plan says, and could be undone as planned.

        Raises:
            PlanError: One is not.
        """
        for step in self.steps.values():
            try:
                entry = tools.resolve(step.tool_name)
                if step.compensate_with is not None:
                    tools.resolve(step.compensate_with)
            except UnknownToolError as exc:
                raise PlanError(f"step {step.name!r}: {exc}") from exc
            if step.compensate_with == entry.name:
                raise PlanError(
                    f"step {step.name!r}: {entry.name!r} can't be undone by itself; name the tool that undoes it"
                )
            tools.check_compensation(entry, step.compensate_with or entry.contract.compensating_tool)
            tools.check_verify(entry)
            _check_arguments(step, entry)

    def order(self) -> list[list[str]]:
        """The steps in waves: each wave needs only earlier ones."""
        place = {name: number for number, name in enumerate(self.steps)}
        sorter = self._sorter()
        sorter.prepare()
        waves: list[list[str]] = []
        while sorter.is_active():
            wave = sorter.get_ready()
            sorter.done(*wave)
            waves.append(sorted(wave, key=place.__getitem__))
        return waves

    def data(self) -> list[dict[str, Any]]:
        """Its journal form."""
        return [
            {
                "tool_name": step.tool_name,
                "arguments": {name: to_data(value) for name, value in step.arguments.items()},
                "id": name,
                "depends_on": list(step.depends_on),
                "compensate_with": step.compensate_with,
            }
            for name, step in self.steps.items()
        ]

    @classmethod
    def from_data(cls, data: Iterable[Mapping[str, Any]], tools: ToolRegistry | None = None) -> Plan:
        """From its journal form; arguments without a `Ref` are of their types again where the tools are known."""

        def argument(tool: str, name: str, form: Any) -> Any:
            value, entry = from_data(form), tools.get(tool) if tools is not None else None
            if entry is None:
                return value
            typed = name in entry.parameters and not refs_in(value)
            return decode(entry.parameters[name].annotation if typed else Any, value)

        steps = [
            Step(
                entry["tool_name"],
                {name: argument(entry["tool_name"], name, form) for name, form in entry["arguments"].items()},
                id=entry["id"],
                depends_on=tuple(entry["depends_on"]),
                compensate_with=entry["compensate_with"],
            )
            for entry in data
        ]
        return cls({step.name: step for step in steps})

    def _check_graph(self) -> None:
        for name, step in self.steps.items():
            for needed in step.depends_on:
                if needed not in self.steps:
                    raise PlanError(
                        f"step {name!r} depends on {needed!r}, which is not in the plan.{nearest(needed, self.steps)}"
                    )
        try:
            self._sorter().prepare()
        except CycleError as exc:
            raise PlanError(
                f"these steps wait for each other in a circle: {', '.join(sorted(set(exc.args[1])))}"
            ) from None

    def _check_refs(self) -> None:
        for name, step in self.steps.items():
            for ref in refs_in(step.arguments):
                if not (isinstance(ref.step, str | int) and isinstance(ref.path, str)):
                    raise PlanError(
                        f"step {name!r}: a Ref takes the name of a step and a path as texts, not {ref!r:.80}"
                    )
                if ref.step not in self.steps:
                    raise PlanError(
                        f"step {name!r} uses the result of {ref.step!r}, which is not in the plan."
                        f"{nearest(ref.step, self.steps)}"
                    )
                if not self.runs_before(ref.step, name):
                    raise PlanError(
                        f"step {name!r} uses the result of {ref.step!r}, which need not have run before it; "
                        f"add it to depends_on"
                    )

    def _sorter(self) -> TopologicalSorter[str]:
        return TopologicalSorter({name: step.depends_on for name, step in self.steps.items()})

    def runs_before(self, earlier: str, later: str) -> bool:
        """Whether one step depends on another, directly or not; looks at the nearest first."""
        reached = dict.fromkeys(self.steps[later].depends_on)
        ahead = list(reached)
        for name in ahead:
            if name == earlier:
                return True
            new = [needed for needed in self.steps[name].depends_on if needed not in reached]
            reached.update(dict.fromkeys(new))
            ahead += new
        return False


def _group(entries: Any) -> list[Any]:
    if isinstance(entries, (str, Mapping, Step)) or not isinstance(entries, Iterable):
        raise PlanError(f"a plan is a list of Steps and lists of Steps, not {entries!r:.80}")
    return list(entries)


def _checked_name(step: Any) -> str:
    """A step's name, if it is a step."""
    if not isinstance(step, Step):
        raise PlanError(f"a plan holds Steps and lists of Steps, not {step!r:.80}")
    if not isinstance(step.tool_name, str):
        raise PlanError(f"a Step takes the name of a tool, not {step.tool_name!r:.80}")
    for field_name, given in (("id", step.id), ("compensate_with", step.compensate_with)):
        if given is not None and not isinstance(given, str):  # a number comes out of a journal as another name
            raise PlanError(f"a Step's {field_name} is a name, not {given!r:.80}")
    if type(step.arguments) is not dict and not isinstance(step.arguments, Mapping):
        raise PlanError(f"step {step.name!r}: arguments are names and values, not {step.arguments!r:.80}")
    return step.name


def _check_arguments(step: Step, entry: Tool) -> None:
    """Refuse what the tool would refuse, as far as that is known before earlier results are.

    Raises:
        PlanError: An argument is unknown, missing, of the wrong type, or the executor's to give.
    """
    for name in step.arguments:
        if name not in entry.parameters and not entry.binding.open_ended:
            raise PlanError(
                f"step {step.name!r}: tool {entry.name!r} takes no {name!r}.{nearest(name, entry.parameters)}"
            )
    if entry.binding.takes_key and KEY_PARAMETER in step.arguments:
        raise PlanError(
            f"step {step.name!r}: leave out {KEY_PARAMETER!r}; each step gets its own, the same whenever it is repeated"
        )
    known = step.arguments
    if not _is_plain(known):
        # Results are not there yet, and what is read only once must be left to the call.
        known = {name: v for name, v in known.items() if not refs_in(v) and not isinstance(v, Iterator)}
    for name, reason in entry.binding.unfit(known).items():
        if name in known or name not in {*step.arguments, KEY_PARAMETER}:
            raise PlanError(f"step {step.name!r}: tool {entry.name!r}: {reason}")


def _sequential(groups: list[list[Step]]) -> list[Step]:
    flat: list[Step] = []
    before: tuple[str, ...] = ()
    for group in groups:
        flat += [changed(step, {"depends_on": before}) for step in group]
        before = tuple([step.name for step in group])
    return flat


def _is_plain(value: Any) -> bool:
    """Whether something is a dictionary of scalars, in which there is nothing to look for."""
    return type(value) is dict and is_plain(value.values())


def refs_in(value: Any) -> list[Ref]:
    """All refs inside a structure of mappings and lists."""
    if type(value) in PLAIN or _is_plain(value):
        return []
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, Mapping):
        return [ref for item in value.values() for ref in refs_in(item)]
    if isinstance(value, (list, tuple)):
        return [ref for item in value for ref in refs_in(item)]
    return []


def resolved(value: Any, results: Mapping[str, Any]) -> Any:
    """A structure with its refs replaced by results.

    Raises:
        PlanError: A result has no such part.
    """
    if type(value) in PLAIN:
        return value
    if _is_plain(value):
        return dict(value)
    if isinstance(value, Ref):
        return value.of(results[value.step])
    if isinstance(value, Mapping):
        return {key: resolved(item, results) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [resolved(item, results) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def to_data(value: Any) -> Any:
    """A structure's journal form; what only looks like a `Ref` is marked as ``$literal``."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Ref):
        return {"$ref": value.step, "path": value.path}
    if isinstance(value, Mapping):
        items = {key: to_data(item) for key, item in value.items()}
        return {"$literal": items} if {"$ref", "$literal"} & set(value) else items
    if isinstance(value, (list, tuple)):
        return [to_data(item) for item in value]
    return value


def _as_text(part: Any) -> Any:
    """A name or a path as a text; YAML takes those of digits for numbers, and an empty one for nothing."""
    return "" if part is None else str(part) if isinstance(part, int) else part


def from_data(value: Any) -> Any:
    """A structure from its journal form, or from YAML, where ``{"$ref": "step.path"}`` is a `Ref`."""
    if isinstance(value, Mapping):
        if set(value) == {"$ref", "path"}:
            return Ref(*(_as_text(value[name]) for name in ("$ref", "path")))
        if set(value) == {"$ref"}:
            step, _, path = str(value["$ref"]).partition(".")
            return Ref(step, path)
        if set(value) == {"$literal"} and isinstance(value["$literal"], Mapping):
            value = value["$literal"]
        return {key: from_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_data(item) for item in value]
    return value
