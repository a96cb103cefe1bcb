"""Plan files that say something else than names where names belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.apps import WORLD
from tests.support.cli import Cli


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {tool: book, arguments: {what: x}, depends_on: [[a]]}", ["step 1", "depends_on"]),
        ("- {tool: book, arguments: {what: x}, depends_on: 1}", ["'1'", "not in the plan"]),
        ("- {tool: book, arguments: {what: x}, compensate_with: 5}", ["step 1", "compensate_with"]),
        ("- {tool: book, id: [1], arguments: {what: x}}", ["step 1", "id"]),
        ("- {tool: book, id: {a: 1}, arguments: {what: x}}", ["step 1", "id"]),
        ("- {tool: book, arguments: {what: &a [*a]}}", ["plan.yaml, step 1", "contain themselves"]),
    ],
)
def test_they_are_refused_by_name(text: str, words: list[str], tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    cli.write("plan.yaml", text)
    for more in ([], ["--dry-run"]):
        refused = cli("saga", "run", "plan.yaml", "--app", "world.py", *more, code=2)
        assert all(word in refused.stderr for word in words), refused.stderr


def test_a_number_is_a_fine_name(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    steps = ["{tool: book, id: 1, arguments: {what: x}}", "{tool: book, id: 2, arguments: {what: {$ref: 1.what}}}"]
    cli.write("plan.yaml", "".join(f"- {step}\n" for step in steps))
    assert '2: {"what": "x"}' in cli("saga", "run", "plan.yaml", "--app", "world.py").stdout
