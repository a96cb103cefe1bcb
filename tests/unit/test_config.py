"""Settings: where they come from, what they become, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from agenthelm.config import Settings, load_settings
from agenthelm.exceptions import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, text: str, name: str = "agenthelm.toml") -> None:
    (folder / name).write_text(text, "utf-8")


def load(folder: Path, environment: dict[str, str] | None = None, **arguments: object) -> Settings:
    return load_settings(arguments, environment=environment or {}, folder=folder)


def test_without_anything_the_defaults_hold(folder: Path) -> None:
    settings = load(folder)
    assert settings.model is None
    assert settings.storage == str(Path(".agenthelm/agenthelm.db"))
    assert settings.memory_url == "sqlite:///.agenthelm/memory.db"
    assert settings.vectors == str(Path(".agenthelm/vectors"))
    assert settings.approve == "ask"
    assert settings.sources == {}


def test_settings_are_frozen(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(folder).model = "x"  # type: ignore[misc]


def test_arguments_win_over_environment_over_file_over_defaults(folder: Path) -> None:
    write(folder, 'model = "from-file"\nembedder = "lexical"\napi_base = "http://file"\n')
    settings = load(
        folder,
        {"AGENTHELM_MODEL": "from-environment", "AGENTHELM_API_BASE": "http://environment"},
        model="from-arguments",
        budget_usd=None,
    )
    assert (settings.model, settings.api_base, settings.embedder) == ("from-arguments", "http://environment", "lexical")
    assert settings.budget_usd is None
    assert settings.sources["model"] == "the command line: model"
    assert settings.sources["api_base"] == "AGENTHELM_API_BASE"
    assert settings.sources["embedder"] == "agenthelm.toml: embedder"


def test_the_table_in_pyproject_is_read_when_there_is_no_file_of_its_own(folder: Path) -> None:
    write(folder, '[tool.agenthelm]\nmodel = "from-pyproject"\n', "pyproject.toml")
    assert load(folder).model == "from-pyproject"
    write(folder, 'model = "from-own-file"\n')
    assert load(folder).model == "from-own-file"


@pytest.mark.parametrize("text", ["", "[tool.other]\nmodel = 1\n", "not toml at all ["])
def test_a_pyproject_without_our_table_is_none_of_our_business(folder: Path, text: str) -> None:
    write(folder, text, "pyproject.toml")
    assert load(folder).model is None


@pytest.mark.parametrize("header", ["[tool.agenthelm]", '[ tool . "agenthelm" ]', "[tool.agenthelm.pricing]"])
def test_a_slip_anywhere_in_a_pyproject_with_our_table_is_refused(folder: Path, header: str) -> None:
    write(folder, f"{header}\nbudget_usd = 0.5\n\n[tool.ruff]\nline-length = 100,\n", "pyproject.toml")
    with pytest.raises(ConfigError, match=r"^pyproject\.toml is not valid TOML: .*line 5"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("agenthelm.toml", '[tool.agenthelm]\nmodel = "x"', ["at the top", "take the line [tool.agenthelm] out"]),
        ("agenthelm.toml", '[agenthelm]\nmodel = "x"', ["at the top, not under [agenthelm]"]),
        ("pyproject.toml", '[agenthelm]\nmodel = "x"', ["under [tool.agenthelm], not under [agenthelm]"]),
        ("pyproject.toml", 'model = "x"\n[project]', ["under [tool.agenthelm]; model stands outside of it"]),
    ],
)
def test_settings_that_stand_where_the_other_file_has_them_are_refused(
    folder: Path, name: str, text: str, words: list[str]
) -> None:
    write(folder, text, name)
    with pytest.raises(ConfigError) as refused:
        load(folder)
    for word in (name, *words):
        assert word in str(refused.value)


@pytest.mark.parametrize("name", ["agenthelm.toml", "pyproject.toml"])
def test_a_byte_order_mark_is_no_part_of_a_file(folder: Path, name: str) -> None:
    table = "[tool.agenthelm]\n" if name == "pyproject.toml" else ""
    write(folder, f'\ufeff{table}model = "from-file"\n', name)
    assert load(folder).model == "from-file"


def test_an_infinite_budget_lifts_the_one_of_the_file(folder: Path) -> None:
    write(folder, "budget_usd = 0.5")
    assert load(folder, {"AGENTHELM_BUDGET_USD": "inf"}).budget_usd is None
    assert load(folder, budget_usd=float("inf")).budget_usd is None
    write(folder, "budget_usd = inf")
    assert load(folder).budget_usd is None


@pytest.mark.parametrize(
    ("variable", "text", "setting", "value"),
    [
        ("AGENTHELM_MODEL", "offline", "model", "offline"),
        ("AGENTHELM_API_BASE", "http://localhost:1", "api_base", "http://localhost:1"),
        ("AGENTHELM_HOME", "/srv/helm", "home", Path("/srv/helm")),
        ("AGENTHELM_STORAGE", "events.jsonl", "storage", "events.jsonl"),
        ("AGENTHELM_MEMORY_URL", "redis://localhost:6379", "memory_url", "redis://localhost:6379"),
        ("AGENTHELM_VECTORS", "http://localhost:8000", "vectors", "http://localhost:8000"),
        ("AGENTHELM_EMBEDDER", "minilm", "embedder", "minilm"),
        ("AGENTHELM_BUDGET_USD", "0.5", "budget_usd", 0.5),
        ("AGENTHELM_APPROVE", "policy.toml", "approve", "policy.toml"),
        ("AGENTHELM_TRACE", "spans.jsonl", "trace", "spans.jsonl"),
        ("AGENTHELM_TRACE", "true", "trace", "console"),
        ("AGENTHELM_TRACE", "0", "trace", None),
        ("AGENTHELM_APP", "my_app:planner", "app", "my_app:planner"),
        ("AGENTHELM_LM_TIMEOUT", "30", "lm_timeout", 30.0),
        ("AGENTHELM_UNPRICED", "deny", "unpriced", "deny"),
        ("AGENTHELM_WORKERS", "8", "workers", 8),
        ("NEXUS_TRACE", "true", "trace", "console"),
    ],
)
def test_every_variable_becomes_a_typed_value(
    folder: Path, variable: str, text: str, setting: str, value: object
) -> None:
    assert getattr(load(folder, {variable: text}), setting) == value


def test_the_old_name_for_tracing_gives_way_to_the_new_one(folder: Path) -> None:
    assert load(folder, {"NEXUS_TRACE": "console", "AGENTHELM_TRACE": "otlp"}).trace == "otlp"


def test_an_empty_variable_says_nothing(folder: Path) -> None:
    assert load(folder, {"AGENTHELM_MODEL": "", "NEXUS_TRACE": ""}).model is None


def test_everything_moves_with_the_home_unless_it_is_named(folder: Path) -> None:
    settings = load(folder, {"AGENTHELM_HOME": "/srv/helm", "AGENTHELM_VECTORS": "/big/vectors"})
    assert settings.storage == "/srv/helm/agenthelm.db"
    assert settings.memory_url == "sqlite:////srv/helm/memory.db"
    assert settings.vectors == "/big/vectors"


def test_a_tilde_is_the_home_folder_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    write(folder, 'storage = "~/a.db"\nmemory_url = "sqlite:///~/m.db"\nvectors = "~/v"\napprove = "~/p.toml"\n')
    settings = load(
        folder, {"AGENTHELM_HOME": "~/helm", "AGENTHELM_TRACE": "~/spans.jsonl", "AGENTHELM_APP": "~/app.py"}
    )
    assert settings.home == Path("/home/ada/helm")
    assert settings.storage == "/home/ada/a.db"
    assert settings.memory_url == "sqlite:////home/ada/m.db"
    assert settings.vectors == "/home/ada/v"
    assert settings.approve == "/home/ada/p.toml"
    assert settings.trace == "/home/ada/spans.jsonl"
    assert settings.app == "/home/ada/app.py"


def test_prices_are_tables(folder: Path) -> None:
    write(folder, '[pricing."my/model"]\ninput = 0.001\noutput = 0.002\n')
    assert load(folder).pricing == {"my/model": {"input": 0.001, "output": 0.002}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('modle = "x"', ["agenthelm.toml", "'modle'", "Did you mean 'model'?"]),
        ('budget_usd = "0.5"', ["agenthelm.toml: budget_usd", "number", "'0.5'"]),
        ("budget_usd = true", ["agenthelm.toml: budget_usd", "number"]),
        ("budget_usd = -1", ["agenthelm.toml: budget_usd", "-1"]),
        ("budget_usd = nan", ["agenthelm.toml: budget_usd"]),
        ('approve = "maybe"', ["agenthelm.toml: approve", "ask, allow, deny", "'maybe'"]),
        ("model = 3", ["agenthelm.toml: model", "text", "3"]),
        ('api_base = "localhost:8000/v1"', ["agenthelm.toml: api_base must begin with http://", "localhost"]),
        ('unpriced = "never"', ["agenthelm.toml: unpriced", "warn, deny, allow"]),
        ("workers = 0", ["agenthelm.toml: workers", "at least 1"]),
        ("workers = 1.5", ["agenthelm.toml: workers", "whole"]),
        ("lm_timeout = 0", ["agenthelm.toml: lm_timeout", "above 0"]),
        ("lm_timeout = inf", ["agenthelm.toml: lm_timeout", "number", "inf"]),
        ("workers = inf", ["agenthelm.toml: workers", "inf"]),
        pytest.param(f"workers = 1{'0' * 400}", ["agenthelm.toml: workers"], id="a number beyond counting"),
        (
            "[pricing.x]\ninput = inf\noutput = 1",
            ['agenthelm.toml: pricing."x".input must be a number of at least 0, not inf'],
        ),
        ("[pricing.x]\ninput = 1", ['agenthelm.toml: pricing."x" lacks output, in USD per 1K tokens']),
        (
            "[pricing.x]\ninputs = 1\noutput = 1",
            ["agenthelm.toml: pricing.\"x\" has an unknown key 'inputs'. Did you mean 'input'?"],
        ),
        ("[pricing.gpt-4.1]\ninput = 1\noutput = 1", ['a name with dots goes in quotes: "gpt-4.1"']),
        ("pricing = 1", ["agenthelm.toml: pricing must be tables", "per 1K", "not 1"]),
        ('home = "~nosuchuser/x"', ["agenthelm.toml: home", "home folder", "'~nosuchuser/x'"]),
        ('storage = "~nosuchuser/a.db"', ["agenthelm.toml: storage", "home folder"]),
        ('memory_url = "sqlite:///~nosuchuser/m.db"', ["agenthelm.toml: memory_url", "home folder"]),
        ('approve = "~nosuchuser/p.toml"', ["agenthelm.toml: approve", "home folder"]),
        ('trace = "~nosuchuser/t.jsonl"', ["agenthelm.toml: trace", "home folder"]),
        ('memory_url = "sqlite:///a\\u0000b"', ["agenthelm.toml: memory_url", "zero characters"]),
        ("[pricing]\nx = 1", ['agenthelm.toml: pricing."x" must be a table', "per 1K", "not 1"]),
        ("model = ", ["agenthelm.toml", "not valid TOML"]),
        (f"model = {'[' * 5000}{']' * 5000}", ["agenthelm.toml", "not valid TOML"]),
    ],
)
def test_what_makes_no_sense_in_the_file_is_refused_with_file_and_key(
    folder: Path, text: str, words: list[str]
) -> None:
    write(folder, text)
    with pytest.raises(ConfigError) as refused:
        load(folder)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("AGENTHELM_MODLE", "x", ["AGENTHELM_MODLE", "Did you mean 'AGENTHELM_MODEL'"]),
        ("AGENTHELM_PRICING", "x", ["AGENTHELM_PRICING"]),
        ("AGENTHELM_BUDGET_USD", "a lot", ["AGENTHELM_BUDGET_USD", "number", "a lot"]),
        ("AGENTHELM_WORKERS", "many", ["AGENTHELM_WORKERS", "many"]),
        ("AGENTHELM_WORKERS", "inf", ["AGENTHELM_WORKERS", "inf"]),
        ("AGENTHELM_HOME", "~nosuchuser/x", ["AGENTHELM_HOME", "home folder", "~nosuchuser/x"]),
    ],
)
def test_what_makes_no_sense_in_the_environment_is_refused_by_name(
    folder: Path, variable: str, text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(folder, {variable: text})
    for word in words:
        assert word in str(refused.value)


def test_an_unknown_argument_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'modell' in the command line\. Did you mean 'model'"):
        load(folder, modell="x")


def test_an_unreadable_file_is_refused_by_name(folder: Path) -> None:
    (folder / "agenthelm.toml").mkdir()
    with pytest.raises(ConfigError, match=r"can't read agenthelm\.toml"):
        load(folder)


def test_importing_settings_loads_nothing_heavy() -> None:
    code = "import sys, agenthelm.config; print([m for m in ('pydantic', 'anyio', 'dspy', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
