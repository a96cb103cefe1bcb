"""From a model's name to a language model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import dspy

from agenthelm.agent.backends import missing_key
from agenthelm.agent.lm import LMPolicy
from agenthelm.agent.offline import OFFLINE, offline_lm
from agenthelm.exceptions import ConfigError, ModelNotConfiguredError

__all__ = ["INEXPENSIVE", "KEYS", "as_model", "detect_model", "resolve_model"]

KEYS: Mapping[str, str] = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "mistral": "MISTRAL_API_KEY",
}
"""Providers by whose key alone a model is picked, in this order, and the environment variable of the key."""

INEXPENSIVE: Mapping[str, str] = {
    "openai": "openai/gpt-4o-mini",
    "anthropic": "anthropic/claude-haiku-4-5",
    "mistral": "mistral/mistral-small-latest",
}
"""The model that is picked for each of them."""

_NO_MODEL = (
    "no language model is configured.\n"
    "Name one: --model openai/gpt-4o-mini (or AGENTHELM_MODEL), or set OPENAI_API_KEY, ANTHROPIC_API_KEY or "
    "MISTRAL_API_KEY.\n"
    "Or try everything without a model and without cost: --model offline"
)


def detect_model() -> str | None:
    """The inexpensive model of the first provider whose key is in the environment; None where there is no key."""
    return next((INEXPENSIVE[provider] for provider, key in KEYS.items() if os.environ.get(key)), None)


def resolve_model(
    name: str | None = None,
    *,
    api_base: str | None = None,
    api_key: str | None = None,
    timeout: float | None = LMPolicy().timeout,
    **options: Any,
) -> dspy.LM:
    """Make the language model of a name.

    Args:
        name: Any name that DSPy or LiteLLM knows, such as ``openai/gpt-4o-mini``; ``offline`` for the built-in
            placeholder model; None for the inexpensive model of the provider whose key is in the environment. There is
            no silent fallback.
        api_base: The address of a server that speaks the provider's protocol. A name without provider prefix is then
            taken for an OpenAI-compatible server's.
        api_key: The key; None for the provider's environment variable. A server at ``api_base`` needs none.
        timeout: Seconds without a byte after which a connection counts as broken. A run bounds the whole call as well.
        **options: Whatever else ``dspy.LM`` takes, such as ``temperature`` and ``max_tokens``.

    Raises:
        ModelNotConfiguredError: There is neither a name nor a key, or the key for the name is missing.
        ConfigError: The name, or an option, makes no sense to DSPy.
    """
    name = (name or "").strip() or detect_model()
    if name is None:
        raise ModelNotConfiguredError(_NO_MODEL)
    if name == OFFLINE:
        return offline_lm()
    provider, slash, _ = name.partition("/")
    if api_base:
        if not slash:
            provider, name = "openai", f"openai/{name}"
        if api_key is None and not os.environ.get(KEYS.get(provider, "")):
            api_key = "unused"  # DSPy insists on a key; local servers don't look at it
    settings = {"api_base": api_base, "api_key": api_key, "timeout": timeout}
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        lm = dspy.LM(name, **given, **options)
    except (ValueError, TypeError, dspy.LMError) as error:
        raise ConfigError(f"model {name!r}: {error}", setting="model") from error
    key = KEYS.get(provider) or missing_key(lm)
    if key and not api_base and api_key is None and not os.environ.get(key):
        raise ModelNotConfiguredError(
            f"model {name!r} needs a key.\n"
            f"Set it: export {key}=<your key>, or point --api-base to a server that needs none (in a program: "
            "dspy.LM(name, api_base=...)).\n"
            "Or try everything without a model and without cost: --model offline (in a program: lm='offline')"
        )
    return lm


def as_model(lm: Any, option: str = "lm") -> dspy.BaseLM | None:
    """What was given as a language model: itself, or the one of that name.

    Raises:
        ModelNotConfiguredError: There is no key for the model of that name.
        ConfigError: It is neither.
    """
    if isinstance(lm, str) and lm.strip():  # an empty name would be picked by key, which is for the command line
        return resolve_model(lm)
    if lm is None or isinstance(lm, dspy.BaseLM):
        return lm
    raise ConfigError(f"{option} must be a dspy.LM or a model's name, not {lm!r:.80}", setting=option)
