"""Token prices from the metadata that comes with DSPy, read without network."""

from __future__ import annotations

import fnmatch
import functools
import gzip
import importlib.metadata
import importlib.resources
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from agenthelm.core.cost import MODEL_PRICING, Price, override_price

__all__ = ["METADATA", "MetadataPrices", "without_price_downloads"]

_SNAPSHOT = "dspy.clients.model_metadata"
_DATED = re.compile(r"(20\d\d-[01]\d-[0-3]\d)")
_TIER = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")
_FEES = ("input_cost_per_request", "output_cost_per_image_token")
_SEARCHES = re.compile(r"/sonar|search-(api|preview)|preview-search|deep-research")
_LOCAL = ("ollama", "lemonade")
_ANSWERS = ("chat", "completion", "responses")


def without_price_downloads() -> None:
    """Keep DSPy and LiteLLM from fetching a price list on first use, unless the user has decided about that."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


class MetadataPrices:
    """Prices of the models that DSPy's bundled metadata knows, and of those in `MODEL_PRICING`, which come first.

    The file is read once, on first use (some 30 ms). A name is looked up exactly: as it stands, and without its
    provider prefix where the entry belongs to that provider.
    """

    def price(self, model: str) -> Price | None:
        """A model's price, or None when it is not known."""
        return override_price(model) or _bundled(model)

    def known(self, pattern: str | None = None) -> list[tuple[str, Price]]:
        """The models whose price is known, by name.

        Args:
            pattern: Part of a name, or a pattern with ``*`` and ``?``; case does not matter. None for all.
        """
        names = {*_entries(), *MODEL_PRICING}
        if pattern:
            wanted = pattern.lower()
            wanted = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"
            names = {name for name in names if fnmatch.fnmatchcase(name.lower(), wanted)}
        priced = ((name, self.price(name)) for name in sorted(names))
        return [(name, price) for name, price in priced if price is not None]

    @property
    def loaded(self) -> bool:
        """Whether the file has been read."""
        return _entries.cache_info().currsize > 0

    def load(self) -> None:
        """Read the file; for code that must not do so on an event loop."""
        _entries()

    @property
    def source(self) -> str:
        """What the bundled data is and how old: its version, and the date of the newest model in it."""
        newest = max((match for name in _entries() for match in _DATED.findall(name)), default="unknown")
        return f"{_data()[1]}, newest dated model {newest}"


METADATA = MetadataPrices()
"""The prices that are used unless others are given."""


@functools.cache
def _data() -> tuple[Mapping[str, Any], str]:
    """The bundled entries, and what they are called. Empty when DSPy no longer brings them."""
    version = importlib.metadata.version("dspy")
    try:
        folder = importlib.resources.files(_SNAPSHOT)
        entries = json.loads(gzip.decompress((folder / "snapshot.json.gz").read_bytes()))
        snapshot = json.loads((folder / "provenance.json").read_text())["version"]
    except (ModuleNotFoundError, FileNotFoundError, KeyError):
        return {}, f"DSPy {version} without bundled prices"
    return entries, f"LiteLLM {snapshot} price list in DSPy {version}"


@functools.cache
def _entries() -> Mapping[str, Any]:
    return {
        name: entry
        for name, entry in _data()[0].items()
        if isinstance(entry, dict) and "input_cost_per_token" in entry and name != "sample_spec"
    }


@functools.cache
def _bundled(model: str) -> Price | None:
    entries = _entries()
    entry = entries.get(model)
    provider, slash, bare = model.partition("/")
    if entry is None and slash:
        candidate = entries.get(bare)
        if candidate is not None and str(candidate.get("litellm_provider", "")) in (
            provider,
            f"{provider}_chat_models",
        ):
            entry = candidate
    return None if entry is None else _price(model, entry)


def _price(model: str, entry: Mapping[str, Any]) -> Price | None:
    base = _rates(entry, "")
    if base is None or not _is_whole_bill(model, entry, base):
        return None
    tiers = sorted(int(match.group(1)) for key in entry if (match := _TIER.fullmatch(key)))
    above = None
    for tier in reversed(tiers):
        rates = _rates(entry, f"_above_{tier}k_tokens", above)
        if rates is not None:
            above = (tier * 1000, rates)
    return base if above is None else _rates(entry, "", above)


def _is_whole_bill(model: str, entry: Mapping[str, Any], price: Price) -> bool:
    """Whether a listed price says what a call costs.

    It does not where requests, images, or searches that the model makes by itself are billed as well. And a rate of 0
    is a gap in the list, unless the model runs on the user's own machine, or is called free.
    """
    if _SEARCHES.search(model) or any(fee in entry for fee in _FEES):
        return False
    if price.input and (price.output or entry.get("mode") not in _ANSWERS):
        return True
    return model.endswith(":free") or (entry.get("litellm_provider") in _LOCAL and not model.endswith("-cloud"))


def _rates(entry: Mapping[str, Any], suffix: str, above: tuple[int, Price] | None = None) -> Price | None:
    def rate(key: str) -> float | None:
        value = entry.get(key + suffix, entry.get(key))
        return float(value) if isinstance(value, (int, float)) and value >= 0 else None

    inputs, outputs = rate("input_cost_per_token"), rate("output_cost_per_token")
    if inputs is None or outputs is None:
        return None
    return Price(
        input=inputs,
        output=outputs,
        cached_input=rate("cache_read_input_token_cost"),
        cache_write=rate("cache_creation_input_token_cost"),
        reasoning=rate("output_cost_per_reasoning_token"),
        source=_data()[1],
        above=above,
    )
