"""Agents by name: registries of your own, and the one that the command line uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

from agenthelm.agent.base import Agent
from agenthelm.agent.builtin import BUILTINS
from agenthelm.agent.loading import is_runnable, load_agents
from agenthelm.agent.signature import AgentSignature, Runnable
from agenthelm.exceptions import AgentError, UnknownAgentError

__all__ = ["AGENT_REGISTRY", "AgentRegistry"]

R = TypeVar("R", bound="Runnable | type[Agent]")
_RAISE: Any = object()


class AgentRegistry(Mapping[str, Runnable]):
    """Agents and flows by name.

    Args:
        agents: Agents to begin with.
        lazily: Agents that are made when they are first asked for: name -> what makes one.
    """

    def __init__(
        self,
        agents: Iterable[Runnable | type[Agent]] = (),
        *,
        lazily: Mapping[str, Callable[[], Runnable]] | None = None,
    ) -> None:
        self._agents: dict[str, Runnable] = {}
        self._lazily = dict(lazily or {})
        for agent in agents:
            self.register(agent)

    def register(self, agent: R, *, replace: bool = False) -> R:
        """Add an agent; usable as a decorator of classes that need no arguments.

        Args:
            agent: An agent or a flow, or an agent class, which is instantiated.
            replace: Let it take the place of another one of its name.

        Returns:
            What was given.

        Raises:
            AgentError: It is no agent, or another one has its name.
        """
        instance: Any = agent() if inspect.isclass(agent) else agent
        if not is_runnable(instance):
            raise AgentError(f"only agents and flows can be registered, not {instance!r:.80}")
        self._add([cast(Runnable, instance)], replace=replace)
        return agent

    def get(self, name: str, default: Any = _RAISE) -> Any:
        """The agent of that name.

        Raises:
            UnknownAgentError: There is none, and no default was given; with the nearest names.
        """
        return self[name] if name in self or default is _RAISE else default

    def list_all(self) -> list[AgentSignature]:
        """What each agent takes and gives, by name."""
        agents: list[Any] = [self[name] for name in sorted(self)]
        return [agent.get_signature() for agent in agents]

    def load(self, target: str) -> list[Runnable]:
        """Register the agents that a module or a file defines.

        Args:
            target: ``"package.module"``, ``"file.py"``, or either with ``":attribute"``. See the page on agents.

        Returns:
            The agents, in the order they are defined.

        Raises:
            AgentLoadError: It can't be found, it raised (with its file and line), or there are no agents in it.
            AgentError: Two agents share a name; none was registered.
        """
        agents = load_agents(target, lambda: [*self._agents.values(), *AGENT_REGISTRY._agents.values()])
        self._add(agents, replace=False)
        return agents

    def _add(self, agents: list[Runnable], *, replace: bool) -> None:
        new: dict[str, Runnable] = {}
        for agent in agents:
            present = new.get(agent.name) or self._agents.get(agent.name)
            taken = (present is not None and present is not agent) or (present is None and agent.name in self._lazily)
            if taken and not (replace and agent.name not in new):
                raise AgentError(f"another agent is registered as {agent.name!r}; give this one another name")
            new[agent.name] = agent
        self._agents.update(new)

    def __getitem__(self, name: str) -> Runnable:
        if name not in self._agents:
            if name not in self._lazily:
                raise UnknownAgentError(name, self)
            self._agents[name] = self._lazily[name]()
        return self._agents[name]

    def __contains__(self, name: object) -> bool:
        return name in self._agents or name in self._lazily

    def __iter__(self) -> Iterator[str]:
        yield from self._agents
        yield from (name for name in self._lazily if name not in self._agents)

    def __len__(self) -> int:
        return len({*self._agents, *self._lazily})

    def __repr__(self) -> str:
        return f"AgentRegistry({', '.join(self)})"


AGENT_REGISTRY = AgentRegistry(lazily=BUILTINS)
"""Where the command line looks; holds the built-in agents."""
