"""From names and keys to models."""

from __future__ import annotations

import pytest

from agenthelm.agent.models import INEXPENSIVE, KEYS, as_model, detect_model, resolve_model
from agenthelm.agent.pricing import METADATA
from agenthelm.exceptions import ConfigError, ModelNotConfiguredError


@pytest.mark.parametrize("provider", KEYS)
def test_a_key_alone_picks_that_providers_documented_model(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS[provider], "k")
    assert detect_model() == INEXPENSIVE[provider]
    assert resolve_model().model == INEXPENSIVE[provider]


@pytest.mark.parametrize("name", INEXPENSIVE.values())
def test_the_models_that_are_picked_have_a_price(name: str) -> None:
    assert METADATA.price(name) is not None


def test_without_model_and_key_three_lines_say_what_to_do() -> None:
    with pytest.raises(ModelNotConfiguredError) as caught:
        resolve_model()
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "AGENTHELM_MODEL" in lines[1]
    assert "--model offline" in lines[2]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ModelNotConfiguredError, match="ANTHROPIC_API_KEY") as caught:
        resolve_model("anthropic/claude-haiku-4-5")
    assert len(str(caught.value).splitlines()) == 3
    assert "dspy.LM(name, api_base=...)" in str(caught.value)  # a program has no options
    assert "lm='offline'" in str(caught.value)


@pytest.mark.parametrize("name", ["", " "])
def test_a_program_that_names_no_model_gets_none_by_its_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(ConfigError, match=r"lm must be a dspy\.LM or a model's name, not '"):
        as_model(name)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("gpt-4o-mini", "OPENAI_API_KEY"),
        ("claude-haiku-4-5", "ANTHROPIC_API_KEY"),
        ("groq/llama3", "GROQ_API_KEY"),
        ("gemini/gemini-2.0-flash", "GEMINI_API_KEY"),
    ],
)
def test_a_missing_key_is_named_whatever_way_the_model_is(name: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(key, raising=False)
    with pytest.raises(ModelNotConfiguredError, match=key):
        resolve_model(name)
    assert resolve_model(name, api_key="k").model.endswith(name)
    monkeypatch.setenv(key, "k")
    assert resolve_model(name).model.endswith(name)


def test_any_of_a_providers_keys_will_do_and_servers_of_ones_own_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.setenv("GOOGLE_API_KEY", "k")
    assert resolve_model("gemini/gemini-2.0-flash").model == "gemini/gemini-2.0-flash"
    assert resolve_model("ollama/llama3").model == "ollama/llama3"
    assert resolve_model("gpt-4o-mini", api_base="http://127.0.0.1:1/v1").model == "openai/gpt-4o-mini"


def test_it_never_falls_back_to_the_offline_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHELM_MODEL", "offline")
    with pytest.raises(ModelNotConfiguredError):
        resolve_model("")


def test_a_local_server_needs_neither_prefix_nor_key() -> None:
    lm = resolve_model("llama3", api_base="http://127.0.0.1:1/v1")
    assert lm.model == "openai/llama3"
    assert lm.kwargs["api_key"] == "unused"
    assert lm.kwargs["api_base"] == "http://127.0.0.1:1/v1"


def test_the_key_of_the_environment_goes_to_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert "api_key" not in resolve_model("openai/gpt-4o", api_base="http://127.0.0.1:1/v1").kwargs


def test_options_reach_the_model() -> None:
    lm = resolve_model("openai/gpt-4o-mini", api_key="k", temperature=0.5, max_tokens=100, timeout=7)
    assert (lm.kwargs["temperature"], lm.kwargs["max_tokens"], lm.kwargs["timeout"]) == (0.5, 100, 7)


@pytest.mark.parametrize(("name", "options"), [("groq/", {}), ("openai/gpt-5", {"api_key": "k", "max_tokens": 5})])
def test_names_and_options_that_make_no_sense_are_config_errors(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_model(name, **options)
    assert caught.value.setting == "model"
