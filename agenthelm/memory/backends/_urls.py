"""URLs of servers, read without quoting them: what can't be read is often a part of a password."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from agenthelm.exceptions import ConfigError

__all__ = ["split_url", "unreadable"]


def split_url(url: str, *, store: str, example: str, setting: str) -> SplitResult:
    """The parts of a URL whose port is one, and whose user and password have not spilt into other parts.

    Raises:
        ConfigError: It can't be read.
    """
    parts = _split(url)
    if parts is None or parts.fragment or (parts.scheme != "unix" and "@" in parts.path):
        raise unreadable(store, example, setting)
    return parts


def unreadable(store: str, example: str, setting: str) -> ConfigError:
    """The error for a URL that makes no sense; it says nothing of what stands in it."""
    return ConfigError(
        f"the {store} URL can't be read; write {example}, and / ? # @ in a user or password as %2F %3F %23 %40",
        setting=setting,
    )


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # looked at only when it is asked for
    except ValueError:
        return None
    return parts
