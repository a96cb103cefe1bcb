"""Plan files that say something else than names where names belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.apps import WORLD
from tests.support.cli import Cli

LAUGHS = (
    f"[&a0 [{', '.join('x' * 10)}], " + ", ".join(f"&a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(9)) + "]"
)
"""Ten lines that stand for thousands of millions of values."""

LIST = """

@tool
def rooms() -> list:
    return ["attic", "cellar"]
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {tool: book, arguments: {what: x}, depends_on: [[a]]}", ["step 1", "depends_on"]),
        ("- - {tool: explode}\n  - - {tool: explode, id: b}", ["step 1:", "holds no further list", "depends_on"]),
        ("- {tool: book, arguments: {what: x}, depends_on: 1}", ["'1'", "not in the plan"]),
        ("- {tool: book, arguments: {what: x}, compensate_with: 5}", ["step 1", "compensate_with"]),
        ("- {tool: book, id: [1], arguments: {what: x}}", ["step 1", "id"]),
        ("- {tool: book, id: {a: 1}, arguments: {what: x}}", ["step 1", "id"]),
        ("- {tool: book, arguments: {what: &a [*a]}}", ["plan.yaml, step 1", "contain themselves"]),
        ("- {tool: book, arguments: []}", ["step 1", "arguments must be names and values"]),
        ("- {tool: book, arguments: {what: {$ref: [a], path: what}}}", ["step 'book'", "the name of a step"]),
        ("- {tool: book, arguments: {what: {$ref: a, path: [what]}}}", ["step 'book'", "a path"]),
        (
            "steps: [{tool: explode}]\nsteps: [{tool: book, arguments: {what: x}}]",
            ["plan.yaml", "'steps' stands twice"],
        ),
        ("- {tool: book, arguments: {what: x}, id: a, id: b}", ["plan.yaml", "'id' stands twice"]),
        (f"- {{tool: book, arguments: {{what: {LAUGHS}}}}}", ["plan.yaml", "aliases (*) stand for too much"]),
        ("[" * 5000 + "]" * 5000, ["plan.yaml is nested too deeply"]),
        ("- {tool: book, arguments: {what: 2026-13-01}}", ["plan.yaml is not valid YAML", "month"]),
    ],
)
def test_they_are_refused_by_name(text: str, words: list[str], tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    cli.write("plan.yaml", text)
    for more in ([], ["--dry-run"]):
        refused = cli("saga", "run", "plan.yaml", "--app", "world.py", *more, code=2)
        assert all(word in refused.stderr for word in words), refused.stderr


def test_a_name_that_stands_twice_in_json_is_refused_as_well(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    cli.write("plan.json", '[{"tool": "book", "arguments": {"what": "x", "what": "y"}}]')
    refused = cli("saga", "run", "plan.json", "--app", "world.py", code=2)
    assert refused.lines == [
        "error: plan.json: the key 'what' stands twice in one mapping; only one of them could count"
    ]


@pytest.mark.parametrize("depth", [900, 200_000])
def test_json_that_is_nested_too_deeply_is_refused(depth: int, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    cli.write("plan.json", f'[{{"tool": "book", "arguments": {{"what": {"[" * depth}{"]" * depth}}}}}]')
    refused = cli("saga", "run", "plan.json", "--app", "world.py", code=2)
    assert refused.lines == ["error: plan.json is nested too deeply"]


def test_what_is_merged_into_a_mapping_may_be_written_anew_there(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    cli.write("plan.yaml", "- &a {tool: book, id: a, arguments: {what: x}}\n- {<<: *a, id: b}\n")
    assert 'b: {"what": "x"}' in cli("saga", "run", "plan.yaml", "--app", "world.py").stdout


@pytest.mark.parametrize("first", [0, 1])
def test_a_number_is_a_fine_name(first: int, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    steps = [
        f"{{tool: book, id: 2, arguments: {{what: {{$ref: {first}.what}}}}, depends_on: {first}}}",
        f"{{tool: book, id: {first}, arguments: {{what: x}}}}",
    ]
    cli.write("plan.yaml", "".join(f"- {step}\n" for step in steps))
    assert '2: {"what": "x"}' in cli("saga", "run", "plan.yaml", "--app", "world.py").stdout


def test_and_a_place_in_a_list_a_fine_path(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD + LIST)
    steps = [
        "{tool: rooms, id: 1}",
        "{tool: book, id: first, arguments: {what: {$ref: 1, path: 0}}}",
        "{tool: book, id: second, arguments: {what: {$ref: 1, path: 1}}}",
    ]
    cli.write("plan.yaml", "".join(f"- {step}\n" for step in steps))
    done = cli("saga", "run", "plan.yaml", "--app", "world.py")
    assert done.stdout.splitlines()[1:] == ['first: {"what": "attic"}', 'second: {"what": "cellar"}']


STAY = """
- {tool: book, id: hotel, arguments: {what: {$input: hotel}}}
- {tool: book, id: car, arguments: {what: {deep: [{$input: car, default: {$ref: hotel.what}}]}}}
- {tool: book, id: boat, arguments: {what: {$literal: {$input: hotel}}}}
"""
ANY = """

@tool(compensating_tool="forget")
def book(what: object) -> object:
    return what


@tool
def forget(what: object) -> None: ...
"""


@pytest.fixture
def stay(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("world.py", "from agenthelm import tool\n" + ANY)
    cli.write("agenthelm.toml", 'app = "world.py"\n')
    cli.write("stay.yaml", STAY)
    return cli


@pytest.mark.parametrize(
    ("given", "booked"),
    [
        ("the Ritz", "the Ritz"),
        ("3", 3),
        ('"3"', "3"),
        ("-Infinity", "-Infinity"),  # no JSON
        ('{"$ref": "car.what"}', {"$ref": "car.what"}),  # a value, whatever it looks like
        ('[{"$input": "car"}, {"$literal": {}}]', [{"$input": "car"}, {"$literal": {}}]),
    ],
)
def test_an_input_stands_where_the_file_says_and_is_never_anything_but_a_value(
    stay: Cli, given: str, booked: object
) -> None:
    done = json.loads(stay("saga", "run", "stay.yaml", "--input", f"hotel={given}", "--json").stdout)
    default, literal = {"deep": [{"$ref": "hotel.what"}]}, {"$input": "hotel"}
    assert done["steps"] == {"hotel": booked, "car": default, "boat": literal}
    given_both = stay("saga", "run", "stay.yaml", "-i", f"hotel={given}", "-i", "car=fast", "--json").stdout
    assert json.loads(given_both)["steps"]["car"] == {"deep": ["fast"]}
    # What runs is what is on record: taking it back needs no input.
    assert "undo book (hotel) by forget" in stay("saga", "undo", "last", "--yes").stderr


@pytest.mark.parametrize("given", ["1.10", "007", "1e3", "null", "NaN", "12345678901234567890"])
def test_where_a_tool_takes_a_text_an_input_that_looks_like_a_number_is_one(stay: Cli, given: str) -> None:
    tool = "\n\n@tool\ndef release(version: str, note: str | None = None) -> list:\n    return [version, note]\n"
    stay.write("world.py", "from agenthelm import tool\n" + tool)
    stay.write("stay.yaml", "- {tool: release, arguments: {version: {$input: v}, note: {$input: v}}}")
    done = json.loads(stay("saga", "run", "stay.yaml", "-i", f"v={given}", "--json").stdout)
    assert done["steps"] == {"release": [given, None if given == "null" else given]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "stay.yaml takes an input 'hotel'; give it with --input hotel=VALUE"),
        (["-i", "hotel=a", "-i", "hotle=b"], "takes no input 'hotle'. Did you mean 'hotel'? It takes: car, hotel."),
        (["-i", "hotel=a", "-i", "hotel=b"], "--input hotel is given twice"),
        (["-i", "hotel"], "--input takes key=value, not 'hotel'"),
    ],
)
def test_inputs_that_are_not_those_of_the_file_are_refused(stay: Cli, options: list[str], words: str) -> None:
    for more in ([], ["--dry-run"]):
        assert words in stay("saga", "run", "stay.yaml", *options, *more, code=2).stderr


@pytest.mark.parametrize("odd", ["{$input: [a]}", "{$input: a, or: b}"])
def test_what_is_written_wrongly_for_an_input_is_refused(stay: Cli, odd: str) -> None:
    stay.write("stay.yaml", f"- {{tool: book, arguments: {{what: {odd}}}}}")
    assert "write {$input: name}" in stay("saga", "run", "stay.yaml", "-i", "a=b", code=2).stderr
