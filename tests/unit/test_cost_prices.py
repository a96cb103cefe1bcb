"""Prices: exact names, overrides, bundled data, the tracker."""

from __future__ import annotations

import math
import subprocess
import sys
import threading

import pytest

from agenthelm.agent.pricing import METADATA
from agenthelm.core.cost import MODEL_PRICING, CostTracker, Price, TokenUsage, override_price
from agenthelm.exceptions import ConfigError


@pytest.fixture
def pricing() -> object:
    MODEL_PRICING.clear()
    yield MODEL_PRICING
    MODEL_PRICING.clear()


def used(model: str, inputs: int = 1000, outputs: int = 1000, **more: int) -> TokenUsage:
    return TokenUsage(input_tokens=inputs, output_tokens=outputs, model=model, **more)


def test_the_table_of_overrides_ships_empty() -> None:
    assert MODEL_PRICING == {}


def test_a_name_matches_with_and_without_its_provider_and_never_by_a_part(pricing: dict[str, object]) -> None:
    pricing["openai/gpt-4o"] = {"input": 0.0025, "output": 0.01}
    pricing["claude-3-sonnet"] = {"input": 0.003, "output": 0.015}
    assert override_price("openai/gpt-4o") == override_price("gpt-4o")
    assert override_price("anthropic/claude-3-sonnet") is not None
    for other in ("openai/gpt-4", "gpt-4o-mini", "anthropic/claude-3-opus", "azure/gpt-4o", "claude-3-sonnet-2"):
        assert override_price(other) is None


def test_a_bare_name_that_two_providers_have_is_nobodys(pricing: dict[str, object]) -> None:
    pricing["a/m"] = {"input": 1, "output": 1}
    pricing["b/m"] = {"input": 2, "output": 2}
    assert override_price("m") is None


def test_overrides_are_per_thousand_tokens_and_come_first(pricing: dict[str, object]) -> None:
    pricing["gpt-4o-mini"] = {"input": 0.5, "output": 1.5, "cached_input": 0.25}
    price = METADATA.price("openai/gpt-4o-mini")
    assert price is not None
    assert price.source == "override"
    assert price.cost(used("m", cached_input_tokens=400)) == 0.6 * 0.5 + 0.4 * 0.25 + 1.5


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"input": 1}, "has no 'output'"),
        ({"input": 1, "output": 1, "cached": 0.5}, "has 'cached'"),
        ({"input": -1, "output": 1}, "says -1 for 'input'"),
        ({"input": 1, "output": math.nan}, "says nan for 'output'"),
        ({"input": math.inf, "output": 1}, "says inf for 'input'"),
        ({"input": 1e300, "output": 1}, r"says 1e\+300 for 'input'"),
        ({"input": 1, "output": 1, "cached_input": "0.5"}, "says '0.5' for 'cached_input'"),
        ({"input": True, "output": 1}, "says True for 'input'"),
        ("cheap", "is 'cheap'"),
    ],
)
def test_an_override_that_is_no_price_is_refused_by_name(pricing: dict[str, object], entry: object, what: str) -> None:
    pricing["openai/zz"] = entry
    with pytest.raises(ConfigError, match=rf"MODEL_PRICING\['openai/zz'\] {what}; .* per 1,000 tokens") as caught:
        METADATA.price("openai/zz")
    assert caught.value.setting == "MODEL_PRICING"
    with pytest.raises(ConfigError):
        CostTracker().track(used("zz"))


def test_bundled_prices_are_looked_up_exactly() -> None:
    mini, full = METADATA.price("openai/gpt-4o-mini"), METADATA.price("gpt-4o")
    assert mini is not None
    assert full is not None
    assert mini.cost(used("gpt-4o-mini")) == 0.00075
    assert full.cost(used("gpt-4o")) == 0.0125
    assert METADATA.price("anthropic/gpt-4o") is None
    assert METADATA.price("openai/gpt-4o-minimal") is None
    assert METADATA.price("offline") is None


def test_cached_and_cache_writing_tokens_have_their_own_price() -> None:
    price = METADATA.price("anthropic/claude-haiku-4-5")
    assert price is not None
    cost = price.cost(used("m", 1_000_000, 0, cached_input_tokens=600_000, cache_write_tokens=200_000))
    assert cost == pytest.approx(0.2 * 1.0 + 0.6 * 0.1 + 0.2 * 1.25)


def test_long_prompts_are_billed_at_the_long_price() -> None:
    price = METADATA.price("gemini/gemini-2.5-pro")
    assert price is not None
    assert price.cost(used("m", 200_000, 0)) == 0.25
    assert price.cost(used("m", 200_001, 0)) == 200_001 * 2.5 / 10**6
    assert price.bound(200_001, 10) >= price.cost(used("m", 200_001, 10))


@pytest.mark.parametrize(
    "model",
    [
        "openrouter/openrouter/auto",
        "volcengine/kimi-k2-thinking-251104",
        "kimi-k2-thinking-251104",
        "gigachat/GigaChat-2-Max",
        "sagemaker/meta-textgeneration-llama-2-13b-f",
        "ollama/gpt-oss:120b-cloud",
        "azure_ai/model_router",
    ],
)
def test_a_hosted_model_that_is_listed_for_nothing_has_no_known_price(model: str) -> None:
    assert METADATA.price(model) is None


@pytest.mark.parametrize("model", ["ollama/llama3", "lemonade/gpt-oss-20b-mxfp4-GGUF", "openrouter/z-ai/glm-5.2:free"])
def test_models_of_this_machine_and_those_that_are_called_free_cost_nothing(model: str) -> None:
    price = METADATA.price(model)
    assert price is not None
    assert price.cost(used(model)) == 0.0


@pytest.mark.parametrize(
    "model",
    [
        "perplexity/sonar",
        "openrouter/perplexity/sonar-pro",
        "perplexity/pplx-70b-online",
        "openai/gpt-4o-search-preview",
        "gpt-5-search-api",
        "gemini/deep-research-preview-04-2026",
        "openrouter/google/gemini-2.5-flash-image",
    ],
)
def test_a_price_that_leaves_out_fees_per_search_request_or_image_is_not_known(model: str) -> None:
    assert METADATA.price(model) is None


def test_tokens_spent_on_thinking_have_their_own_price() -> None:
    price = METADATA.price("dashscope/qwen-turbo")
    assert price is not None
    usage = used("m", 1000, 100_000, reasoning_tokens=99_000)
    assert price.cost(usage) == pytest.approx(1000 * 5e-8 + 1000 * 2e-7 + 99_000 * 5e-7)
    assert price.bound(1000, 100_000) >= price.cost(usage)


def test_a_bound_is_never_below_the_cost() -> None:
    price = Price(1e-6, 5e-6, cached_input=1e-7, cache_write=1.25e-6, reasoning=6e-6)
    for more in ({}, {"cached_input_tokens": 900}, {"cache_write_tokens": 1000}, {"reasoning_tokens": 1000}):
        assert price.bound(1000, 1000) >= price.cost(used("m", **more))


def test_known_models_can_be_listed_and_searched() -> None:
    everything = METADATA.known()
    assert len(everything) > 1000
    names = [name for name, _ in METADATA.known("GPT-4o-mini")]
    assert "gpt-4o-mini" in names
    assert all("gpt-4o-mini" in name.lower() for name in names)
    assert [name for name, _ in METADATA.known("gpt-4o-min?")] == ["gpt-4o-mini"]
    assert METADATA.known("no such model") == []


def test_the_data_says_what_it_is_and_how_old() -> None:
    assert "DSPy" in METADATA.source
    assert "newest dated model 20" in METADATA.source


def test_looking_up_prices_opens_no_connection_and_needs_no_variable() -> None:
    code = (
        "import os, socket\n"
        "os.environ.pop('LITELLM_LOCAL_MODEL_COST_MAP', None)\n"
        "def no(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = no; socket.getaddrinfo = no\n"
        "from agenthelm.agent.pricing import METADATA\n"
        "assert METADATA.price('openai/gpt-4o-mini').input > 0\n"
        "import agenthelm.agent.lm\n"
        "assert os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] == 'True'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_user_decides_about_price_downloads() -> None:
    code = (
        "import os; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'False'\n"
        "import agenthelm.agent.lm\n"
        "assert os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] == 'False'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tracker_adds_up_and_knows_no_cost_for_unknown_models() -> None:
    tracker = CostTracker(METADATA)
    assert tracker.total_cost == 0.0
    assert tracker.check_budget(0.0)
    assert tracker.track(used("openai/gpt-4o-mini")) == 0.00075
    assert tracker.total_cost == 0.00075
    assert not tracker.check_budget(0.0)
    assert tracker.check_budget(0.00075)
    assert tracker.track(used("nobody/knows")) is None
    assert tracker.total_cost is None
    assert tracker.priced_cost == 0.00075
    assert [event.model for event in tracker.events] == ["openai/gpt-4o-mini", "nobody/knows"]


def test_the_tracker_is_safe_for_concurrent_use(pricing: dict[str, object]) -> None:
    pricing["m"] = {"input": 0.001, "output": 0.0}
    tracker = CostTracker()
    threads = [threading.Thread(target=lambda: [tracker.track(used("m", 1, 0)) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tracker.events) == 4000
    assert tracker.total_cost == 0.004
