"""What can be imported is what is promised: names, their homes, their documentation, and what importing them costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agenthelm
from agenthelm import exceptions as errors
from agenthelm.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "agenthelm"
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(PACKAGE).parts)
]
HEAVY = ("dspy", "chromadb", "redis", "opentelemetry.sdk", "litellm", "openai", "numpy", "onnxruntime")


def tree_of(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))


def loaded(program: str) -> set[str]:
    """The heavy libraries in `sys.modules` after a program ran in a process of its own."""
    report = (
        f"import json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import atexit\natexit.register(lambda: exec({report!r}, {{}}))\n{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_every_public_name_is_there() -> None:
    assert [name for name in agenthelm.__all__ if not hasattr(agenthelm, name)] == []
    assert len(set(agenthelm.__all__)) == len(agenthelm.__all__)
    assert set(agenthelm.__all__) <= set(dir(agenthelm))


def test_type_checkers_and_the_running_program_find_the_same_names_in_the_same_places() -> None:
    checked, hidden = (node for node in tree_of("agenthelm").body if isinstance(node, ast.If))
    assert ast.unparse(hidden.test) == "not TYPE_CHECKING"
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == agenthelm._HOME
    assert {*seen, "__version__"} == set(agenthelm.__all__)


@pytest.mark.parametrize(
    "name",
    ["agenthelm.agent", "agenthelm.core.storage", "agenthelm.orchestration", "agenthelm.testing", "agenthelm.tracing"],
)
def test_a_rooms_names_come_when_they_are_asked_for(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        package.Agnet  # noqa: B018
    assert loaded(f"import {name}") == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        agenthelm.Agnet  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", agenthelm.__version__)


@pytest.mark.parametrize("name", MODULES)
def test_every_name_a_module_declares_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert [entry for entry in getattr(module, "__all__", ()) if not hasattr(module, entry)] == []


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name != "agenthelm" and (PACKAGE.parent / name.replace(".", "/")).is_dir()]
)
def test_a_packages_names_are_exactly_those_it_declares(name: str) -> None:
    taken = {
        alias.asname or alias.name
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agenthelm.")
        if node.module != "agenthelm.lazy"
        for alias in node.names
    }
    assert {entry for entry in taken if not entry.startswith("_")} == set(
        getattr(importlib.import_module(name), "__all__", ())
    )


def taken(*folders: str) -> Iterator[tuple[str, str]]:
    """What the files there take of the package: modules and names, also where a name is reached through its module."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        tree, imported = ast.parse(path.read_text("utf-8")), dict[str, str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agenthelm."):
                for alias in node.names:
                    if (whole := f"{node.module}.{alias.name}") in modules:
                        imported[alias.asname or alias.name] = whole
                    else:
                        yield str(node.module), alias.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
                yield imported[node.value.id], node.attr


def named_elsewhere() -> Iterator[tuple[str, str]]:
    """The same, for what the API reference describes and the command line loads."""
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for place in re.findall(r"^::: (agenthelm\S*)", page.read_text("utf-8"), re.MULTILINE):
            yield place.rpartition(".")[0], place.rpartition(".")[2]
    for module, _, name in (place.partition(":") for place, *_ in cli._COMMANDS.values()):
        yield f"agenthelm.cli.{module}", name or "app"


def test_a_module_declares_what_others_take_of_it_and_nothing_else() -> None:
    needed, wanted = set(taken("agenthelm")), {*taken("agenthelm", "tests", "examples"), *named_elsewhere()}
    amiss = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
        declared = set(getattr(module, "__all__", ()))
        if path.name == "__init__.py" or not declared or module is errors:  # errors are described as a whole
            continue
        own = {entry for entry in declared if getattr(getattr(module, entry), "__module__", name) == name}
        amiss += [f"{name}.{entry} is taken by nobody" for entry in sorted(own) if (name, entry) not in wanted]
        amiss += [
            f"{name}.{entry} is not declared"
            for module_name, entry in sorted(needed)
            if module_name == name and entry not in declared and not entry.startswith("_")
        ]
    assert amiss == []


def test_a_public_name_is_public_at_home_too() -> None:
    strays = [
        f"{home}.{name}" for name, home in agenthelm._HOME.items() if name not in importlib.import_module(home).__all__
    ]
    assert strays == []


def test_every_public_name_is_documented() -> None:
    silent = [
        name
        for name in agenthelm.__all__
        if (inspect.isclass(value := getattr(agenthelm, name)) or inspect.isroutine(value))
        and not inspect.getdoc(value)
    ]
    assert silent == []


def test_every_public_name_has_its_place_in_the_api_reference() -> None:
    pages = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    described = {line.rsplit(".", 1)[-1] for line in re.findall(r"^::: (agenthelm\S*)", pages, re.MULTILINE)}
    together = set(errors.__all__)  # described as one module
    assert set(agenthelm.__all__) - together - described == {"__version__"}


def on_the_pages() -> dict[str, object]:
    """What the API reference describes, by name."""
    found: dict[str, object] = {}
    for path in (ROOT / "docs" / "api").glob("*.md"):
        for place in re.findall(r"^::: (agenthelm\S*)", path.read_text("utf-8"), re.MULTILINE):
            home, _, name = place.rpartition(".")
            try:
                module = importlib.import_module(place)
            except ImportError:
                found[name] = getattr(importlib.import_module(home), name)
            else:
                found.update((entry, getattr(module, entry)) for entry in module.__all__)
    return found


def docstrings(name: str, described: object) -> Iterator[tuple[str, str]]:
    """Those of a name and of its public members."""
    if inspect.isclass(described) or inspect.isroutine(described):
        yield name, inspect.getdoc(described) or ""
    for member, value in vars(described).items() if inspect.isclass(described) else ():
        if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property | classmethod)):
            yield f"{name}.{member}", inspect.getdoc(getattr(described, member)) or ""


def test_public_docstrings_refer_to_what_readers_can_find() -> None:
    """A ``name`` in single backticks is a reference: to something on these pages, or to a member of the same class."""
    pages = on_the_pages()
    known = {*pages, *(f"{name}.{member}" for name, it in pages.items() if inspect.isclass(it) for member in dir(it))}
    known |= {f"{name}.{field}" for name, it in pages.items() for field in getattr(it, "__annotations__", ())}
    lost = [
        f"{where} refers to {reference}"
        for name, described in pages.items()
        for where, text in docstrings(name, described)
        for reference in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", text)
        if reference not in known and f"{name}.{reference}" not in known
    ]
    assert lost == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import agenthelm; agenthelm.Budget; agenthelm.AgentHelmError") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert (
        loaded(f"from agenthelm.cli.main import main\nimport sys\ntry:\n  main({arguments!r})\nexcept SystemExit: pass")
        == set()
    )
