"""Agents by name, and agents found in files and modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agenthelm.agent import AGENT_REGISTRY, Agent, AgentRegistry, AgentSignature
from agenthelm.exceptions import AgentError, AgentLoadError, UnknownAgentError

HEADER = "from agenthelm import Agent, AGENT_REGISTRY, Pipeline\n"
SAYER = "class {0}(Agent):\n    async def aforward(self, context, task: str):\n        return {{'text': task}}\n"


class Sayer(Agent):
    """Says."""

    async def aforward(self, context, task):  # type: ignore[no-untyped-def]
        return {"text": task}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules, agents = set(sys.modules), dict(AGENT_REGISTRY._agents)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    AGENT_REGISTRY._agents.clear()
    AGENT_REGISTRY._agents.update(agents)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def app(tmp_path: Path) -> Any:
    def write(text: str, name: str = "app.py") -> str:
        path = tmp_path / name
        path.write_text(HEADER + text)
        return str(path)

    return write


def names(agents: Any) -> list[str]:
    return [agent.name for agent in agents]


def test_registered_agents_are_found_by_name() -> None:
    registry, agent = AgentRegistry(), Sayer()
    assert registry.register(agent) is agent
    assert registry.get("sayer") is registry["sayer"] is agent
    assert "sayer" in registry
    assert list(registry) == ["sayer"]
    assert len(registry) == 1


def test_an_unknown_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(UnknownAgentError, match=r"no agent named 'sayr'\. Did you mean 'sayer'\?"):
        AgentRegistry([Sayer()]).get("sayr")
    assert AgentRegistry().get("sayr", None) is None


def test_a_taken_name_is_refused_unless_it_is_to_be_replaced() -> None:
    registry, other = AgentRegistry([Sayer()]), Sayer()
    with pytest.raises(AgentError, match="another agent is registered as 'sayer'"):
        registry.register(other)
    registry.register(other, replace=True)
    assert registry["sayer"] is other
    registry.register(other)
    with pytest.raises(AgentError, match="'writer'"):
        AGENT_REGISTRY.register(Sayer("writer"))


def test_a_class_is_registered_as_its_instance() -> None:
    registry = AgentRegistry()

    @registry.register
    class Another(Sayer):
        pass

    assert isinstance(registry["another"], Another)


def test_what_is_no_agent_is_refused() -> None:
    with pytest.raises(AgentError, match="only agents and flows"):
        AgentRegistry().register(object())  # type: ignore[type-var]


def test_the_default_registry_holds_the_built_in_agents_and_makes_each_once() -> None:
    assert {"researcher", "writer", "reviewer"} <= set(AGENT_REGISTRY)
    assert AGENT_REGISTRY["writer"] is AGENT_REGISTRY["writer"]


def test_list_all_gives_signatures_by_name() -> None:
    listing = AgentRegistry([Sayer("b"), Sayer("a")]).list_all()
    assert all(isinstance(signature, AgentSignature) for signature in listing)
    assert [signature.name for signature in listing] == ["a", "b"]


def test_a_files_instances_and_classes_are_found_but_not_what_it_imports(app: Any) -> None:
    target = app(
        "from agenthelm import WriterAgent\n"
        + SAYER.format("One")
        + SAYER.format("Two")
        + SAYER.format("_Hidden")
        + "class Base(Agent):\n    pass\n"
        "class Needy(One):\n    def __init__(self, city):\n        super().__init__()\n"
        "two = Two('second')\nflow = Pipeline([One(), two], name='flow')\n"
    )
    registry = AgentRegistry()
    assert names(registry.load(target)) == ["second", "flow", "one"]
    assert set(registry) == {"one", "second", "flow"}


def test_an_agent_that_a_file_registers_itself_is_found_once(app: Any) -> None:
    target = app(SAYER.format("Planner") + "AGENT_REGISTRY.register(Planner('planner'))\n")
    assert names(AGENT_REGISTRY.load(target)) == ["planner"]
    assert names(AGENT_REGISTRY.load(target)) == ["planner"]
    own = AgentRegistry()
    assert names(own.load(target)) == ["planner"]


def test_loading_a_file_twice_gives_the_same_agents(app: Any) -> None:
    registry, target = AgentRegistry(), app(SAYER.format("One"))
    assert registry.load(target)[0] is registry.load(target)[0]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("one", ["uno"]),
        ("One", ["one"]),
        ("team", ["uno", "two"]),
        ("make", ["made"]),
        ("Namespace.inner", ["inner"]),
    ],
)
def test_an_attribute_names_an_agent_a_class_a_list_or_a_function(
    app: Any, attribute: str, expected: list[str]
) -> None:
    target = app(
        SAYER.format("One")
        + "one = One('uno')\nteam = [one, One('two')]\n"
        + "def make():\n    return One('made')\n"
        + "class Namespace:\n    inner = One('inner')\n"
    )
    assert names(AgentRegistry().load(f"{target}:{attribute}")) == expected


def test_a_module_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "crew_for_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "agents.py").write_text(HEADER + SAYER.format("One"))
    monkeypatch.chdir(tmp_path)
    assert names(AgentRegistry().load("crew_for_tests.agents")) == ["one"]
    assert names(AgentRegistry().load("crew_for_tests.agents:One")) == ["one"]


def test_a_file_imports_what_lies_beside_it(app: Any, tmp_path: Path) -> None:
    (tmp_path / "neighbour_for_tests.py").write_text("NAME = 'neighbour'\n")
    target = app("from neighbour_for_tests import NAME\n" + SAYER.format("One") + "one = One(NAME)\n")
    assert names(AgentRegistry().load(target)) == ["neighbour"]


def test_a_file_that_raises_is_named_with_the_line(app: Any) -> None:
    target = app("def helper():\n    return {}['key']\n\nhelper()\n")
    with pytest.raises(AgentLoadError, match=r"app\.py:3: KeyError: 'key'") as caught:
        AgentRegistry().load(target)
    assert (caught.value.file, caught.value.line) == (str(Path(target).resolve()), 3)
    with pytest.raises(AgentLoadError):
        AgentRegistry().load(target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", r"app\.py:2: SyntaxError"),
        ("import sys\nsys.exit(3)\n", r"app\.py:3: SystemExit: 3"),
        ("import no_such_module_anywhere\n", r"app\.py:2: ModuleNotFoundError"),
        ("class A(Agent):\n    def forward(self, question):\n        pass\n", r"app\.py:2: AgentError"),
        (("class A(Agent):\n    def forward(self, context):\n        pass\n"
         "    def __init__(self):\n        raise OSError('no disk')\n"), r"app\.py:6: OSError: no disk"),
        ("x = 1\n", "holds no agents"),
    ],
)  # fmt: skip
def test_files_that_cant_be_used_are_refused_clearly(app: Any, text: str, message: str) -> None:
    with pytest.raises(AgentLoadError, match=message):
        AgentRegistry().load(app(text))


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":onee", "there is no 'onee'. Did you mean 'one'"),
        (":number", "is no agent but of type int"),
        (":Needy", "Needy needs city"),
        (":nothing", "made a NoneType"),
    ],
)
def test_attributes_that_are_no_agents_are_refused_clearly(app: Any, suffix: str, message: str) -> None:
    target = app(
        SAYER.format("One") + "one = One()\nnumber = 1\n"
        "class Needy(One):\n    def __init__(self, city):\n        pass\n"
        "def nothing():\n    return None\n"
    )
    with pytest.raises(AgentLoadError, match=message):
        AgentRegistry().load(target + suffix)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no/such/file.py", "there is no file no/such/file.py"),
        ("no_such_module_anywhere", "there is no module 'no_such_module_anywhere'"),
        ("json.no_such_part", r"there is no module 'json\.no_such_part'"),
        ("no_such_module_anywhere:agent", "there is no module"),
        ("not a module", "neither a file nor a module"),
        ("", "neither a file nor a module"),
    ],
)
def test_targets_that_are_not_there_are_refused_clearly(target: str, message: str) -> None:
    with pytest.raises(AgentLoadError, match=message):
        AgentRegistry().load(target)


def test_of_two_agents_with_one_name_none_is_registered(app: Any) -> None:
    registry = AgentRegistry()
    with pytest.raises(AgentError, match="'same'"):
        registry.load(app(SAYER.format("One") + "a = One('other')\nb = One('same')\nc = One('same')\n"))
    assert len(registry) == 0


def test_a_class_that_is_named_stands_for_the_instance_that_is_there(app: Any) -> None:
    held = app(SAYER.format("Holder") + "holder = Holder()\n", "held.py")
    registry = AgentRegistry()
    assert registry.load(held) == registry.load(f"{held}:Holder")
    registered = app("@AGENT_REGISTRY.register\n" + SAYER.format("Known"), "registered.py")
    assert names(AGENT_REGISTRY.load(f"{registered}:Known")) == ["known"]


@pytest.mark.parametrize(
    "text",
    [
        SAYER.format("Maker") + "maker = Maker()\ndef make():\n    return Maker(description='made')\n",
        SAYER.format("Maker")
        + "flow = Pipeline([Maker('one')], name='flow')\ndef make():\n    return Pipeline([Maker('two')], name='flow')\n",
    ],
    ids=["agent", "flow"],
)
def test_what_a_function_makes_is_not_taken_for_what_is_there_under_its_name(app: Any, text: str) -> None:
    target = app(text + "made = []\nkept = make\ndef make():\n    made.append(kept())\n    return made[0]\n")
    found = AgentRegistry().load(f"{target}:make")
    assert found == AgentRegistry().load(f"{target}:made")


def test_a_file_that_the_program_has_imported_already_is_not_executed_again(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = app(SAYER.format("Once") + "once = Once()\n", "imported_before.py")
    monkeypatch.syspath_prepend(str(Path(target).parent))
    module = importlib.import_module("imported_before")
    assert AgentRegistry().load(target) == [module.once]


def test_a_module_that_imports_itself_when_it_is_looked_at_does_not_hinder_loading_a_file(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy:
        def __getattr__(self, name: str) -> Any:
            raise ImportError(f"no {name} without its extra")

    monkeypatch.setitem(sys.modules, "lazy_for_tests", Lazy())  # type: ignore[arg-type]
    assert names(AgentRegistry().load(app(SAYER.format("Beside")))) == ["beside"]


async def test_a_program_that_runs_itself_when_it_is_loaded_is_told_where_that_belongs(app: Any) -> None:
    target = app(f"import anyio\n{SAYER.format('Own')}\nanyio.run(anyio.sleep, 0)\n")
    with pytest.raises(AgentLoadError, match=r"app\.py:7: .* belongs under: if __name__ == '__main__':"):
        AgentRegistry().load(target)
