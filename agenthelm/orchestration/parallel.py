"""Agents at once, over one state, and how their results become one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, TypeAlias

from agenthelm._runtime.context import current_run, raise_if_stopped
from agenthelm._runtime.groups import named
from agenthelm.agent.signature import AgentSignature, FieldSpec, Runnable
from agenthelm.core.executor import current_executor
from agenthelm.exceptions import WiringError
from agenthelm.orchestration.live import ScopeLog
from agenthelm.orchestration.options import check_number, choice
from agenthelm.orchestration.pipeline import as_result, flow_span, merged
from agenthelm.orchestration.scope import Opening, SagaScope
from agenthelm.orchestration.wiring import (
    TASK,
    Supply,
    check_component,
    chosen_inputs,
    component_name,
    components,
    signature_of,
)
from agenthelm.telling import describe

__all__ = ["ErrorPolicy", "Merge", "MergeStrategy", "Parallel", "branch_scope"]

MergeStrategy: TypeAlias = Literal["dict", "flat", "list"]
ErrorPolicy: TypeAlias = Literal["cancel", "collect"]
Merge: TypeAlias = Callable[[dict[str, dict[str, Any]]], Mapping[str, Any]]
"""Makes one result of the branches' results, which it gets by name in the order of the agents."""

ERRORS = "errors"


class Parallel:
    """Runs agents at once; each gets the inputs it declares.

    Args:
        agents: Agents, flows, or objects with ``run(context, /, **inputs)``.
        merge_strategy: ``"dict"`` gives ``{agent: result}``; ``"flat"`` one dict of all fields, refusing fields that two
            branches return; ``"list"`` gives ``{"results": [...]}``. Or a function, as ``merge``.
        merge: A function of your own in its place: ``{agent: result} -> dict``.
        on_error: ``"cancel"``: the first failure cancels the others and is raised, with theirs as notes.
            ``"collect"``: a branch that fails is undone at once, the others stand, and the result has ``errors``, the
            failures by branch as ``"Type: message"`` (empty when there are none).
        max_concurrency: How many may run at the same time; None for all.
        name: What it is called; by default the names of its agents.

    Raises:
        WiringError: There are no agents, one can't be run, two share a name, two declare an output that ``"flat"``
            can't hold twice.
        ConfigError: An option has no such value.
    """

    def __init__(
        self,
        agents: Iterable[Runnable],
        merge_strategy: MergeStrategy | Merge = "dict",
        *,
        merge: Merge | None = None,
        on_error: ErrorPolicy = "cancel",
        max_concurrency: int | None = None,
        name: str | None = None,
    ) -> None:
        self.agents: tuple[Runnable, ...] = components("Parallel", agents)
        self.name: str = name or " | ".join(component_name(agent) for agent in self.agents)
        if callable(merge_strategy):
            merge, merge_strategy = merge or merge_strategy, "dict"
        self.merge = merge
        self.merge_strategy: MergeStrategy = choice("merge_strategy", merge_strategy, MergeStrategy)
        self.on_error: ErrorPolicy = choice("on_error", on_error, ErrorPolicy)
        check_number("max_concurrency", max_concurrency, at_least=1, whole=True)
        self.max_concurrency = max_concurrency
        self._refuse_clashes()

    def get_signature(self) -> AgentSignature:
        """What must be given to it, and what its merge returns."""
        signatures = [signature_of(agent) for agent in self.agents]
        inputs: dict[str, FieldSpec] = {}
        for signature in signatures:
            for name, spec in signature.inputs.items():
                inputs[name] = merged(inputs.get(name), spec)
        outputs: dict[str, FieldSpec] = {}
        is_open = self.merge is not None
        if self.merge is None and self.merge_strategy == "dict":
            outputs = {signature.name: FieldSpec(signature.name, dict[str, Any]) for signature in signatures}
        elif self.merge is None and self.merge_strategy == "list":
            outputs = {"results": FieldSpec("results", list[dict[str, Any]])}
        elif self.merge is None:
            outputs = {name: spec for signature in signatures for name, spec in signature.outputs.items()}
            outputs.pop(TASK, None)
            is_open = any(signature.open_outputs for signature in signatures)
        if self.on_error == "collect":
            outputs[ERRORS] = FieldSpec(ERRORS, dict[str, str], desc="failed branches: 'Type: message'")
        return AgentSignature(
            self.name,
            f"{len(self.agents)} at once",
            inputs,
            outputs,
            open_inputs=any(signature.open_inputs for signature in signatures),
            open_outputs=is_open,
        )

    def check(self, available: Supply | Iterable[str] = (TASK,)) -> None:
        """Make sure that every branch's required inputs will be there, before anything runs.

        Args:
            available: The names of the inputs it will be given.

        Raises:
            WiringError: Which agent, which field, and what is available.
        """
        supply = Supply.of(available)
        for agent in self.agents:
            check_component(agent, signature_of(agent), supply)

    async def run(self, context: Any = None, /, **inputs: Any) -> dict[str, Any]:
        """Run the branches at once and wait for all of them.

        Returns:
            The merged results.

        Raises:
            WiringError: The fields don't fit (nothing ran), or two branches returned a field that ``"flat"`` can't hold
                twice.
            Exception: With ``on_error="cancel"`` the first failure, bare; the others are notes on it.
        """
        self.check(inputs)
        supply = Supply.of(inputs)
        branches = {
            component_name(agent): functools.partial(
                self._branch, agent, context, chosen_inputs(agent, signature_of(agent), supply, inputs)
            )
            for agent in self.agents
        }
        collect = self.on_error == "collect"
        results, errors = await named(branches, max_concurrency=self.max_concurrency, collect=collect)
        raise_if_stopped()
        merged_result = self._merged(results, inputs)
        if collect:
            merged_result[ERRORS] = {name: describe(error) for name, error in errors.items()}
        return merged_result

    async def _branch(self, agent: Runnable, context: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        result: Mapping[str, Any] = {}
        with flow_span(agent):
            if self.on_error == "collect":
                async with branch_scope(component_name(agent)):
                    result = as_result(agent, await agent.run(context, **given))
            else:
                result = as_result(agent, await agent.run(context, **given))
        return result

    def _merged(self, results: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self.merge is not None:
            return dict(as_result(self, self.merge({name: dict(result) for name, result in results.items()})))
        if self.merge_strategy == "list":
            return {"results": [dict(result) for result in results.values()]}
        if self.merge_strategy == "dict":
            return {name: dict(result) for name, result in results.items()}
        return self._flat(results, inputs)

    def _flat(self, results: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Any]) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        owner: dict[str, str] = {}
        for branch, result in results.items():
            for name, value in result.items():
                if name == TASK or (name in inputs and inputs[name] is value):
                    continue  # a nested pipeline hands its inputs on
                if name in owner:
                    raise self._clash(name, owner[name], branch)
                flat[name], owner[name] = value, branch
        return flat

    def _refuse_clashes(self) -> None:
        names = [component_name(agent) for agent in self.agents]
        if self.merge is None and self.merge_strategy == "dict" and self.on_error == "collect" and ERRORS in names:
            raise WiringError(f"an agent named {ERRORS!r} would hide the errors of a collecting Parallel", agent=ERRORS)
        if self.merge is not None or self.merge_strategy != "flat":
            return
        owner: dict[str, str] = {ERRORS: self.name} if self.on_error == "collect" else {}
        for signature in map(signature_of, self.agents):
            for name in signature.outputs:
                if name in owner and name != TASK:
                    raise self._clash(name, owner[name], signature.name)
                owner[name] = signature.name

    def _clash(self, name: str, first: str, second: str) -> WiringError:
        return WiringError(
            f"{first!r} and {second!r} both return {name!r}, which merge_strategy='flat' can't hold twice; use 'dict', "
            f"'list' or a merge function",
            agent=second,
            field=name,
        )

    def __repr__(self) -> str:
        return f"Parallel({', '.join(component_name(agent) for agent in self.agents)})"


class branch_scope:  # noqa: N801 - used like a function: `async with branch_scope("left"):`
    """A sub-saga for one collected branch; nothing outside of a run.

    Args:
        name: The branch.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._scope: SagaScope | None = None

    async def __aenter__(self) -> None:
        executor, context = current_executor(), current_run()
        if executor is not None and context is not None and isinstance(executor.effects, ScopeLog):
            self._scope = SagaScope(executor, context, Opening(self._name), grace=executor.effects.grace)
            await self._scope.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._scope is not None:
            await self._scope.__aexit__(kind, error, traceback)
