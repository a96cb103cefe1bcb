"""The library logs by the standard `logging`: one logger per module, no handler of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agenthelm

PACKAGE = Path(agenthelm.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "getLogger" in path.read_text("utf-8"))


def test_there_are_loggers_at_all() -> None:
    assert len(MODULES) > 5


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_s_logger_has_the_module_s_name_and_no_handler(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = {ast.unparse(node.func): ast.unparse(node) for node in calls}
    assert "logging.basicConfig" not in named
    assert not any(name.endswith(".addHandler") for name in named)
    if "cli" not in path.relative_to(PACKAGE).parts:  # the command line is an application and may set up logging
        made = [
            ast.unparse(node.value) for node in tree.body
            if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node)
        ]  # fmt: skip
        assert made in (["logging.getLogger(__name__)"], [])


def test_importing_everything_installs_no_handler() -> None:
    program = """
        import importlib, logging, pkgutil
        import agenthelm
        for module in pkgutil.walk_packages(agenthelm.__path__, "agenthelm."):
            importlib.import_module(module.name)
        loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("agenthelm")]
        assert len(loggers) > 5
        assert not [one for one in loggers if one.handlers or not one.propagate]
    """
    import textwrap

    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
