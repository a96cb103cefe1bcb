"""What a failed LM call means: for the books, for a retry, and for whoever reads the message."""

from __future__ import annotations

import re
import socket
from typing import Literal

from dspy import lm15
from dspy.utils.exceptions import AdapterParseError, LMError

from agenthelm.core.redaction import scrub
from agenthelm.exceptions import AgentHelmError, ModelCallError
from agenthelm.telling import chain

__all__ = ["fate_of", "is_retryable", "remember_attempts", "unwrap"]

_RETRYABLE = frozenset({"rate_limit", "timeout", "server", "transport", "lock_timeout"})
_LOCAL = frozenset(
    {"not_configured", "configuration", "unknown_model", "ambiguous_model", "unsupported_feature", "lock_timeout"}
)
_REFUSED = frozenset(
    {"auth", "billing", "rate_limit", "invalid_request", "context_length", "server", "unsupported_model"}
)
_CONNECT = frozenset({"ConnectError", "ConnectTimeout"})

Fate = Literal["unsent", "refused", "lost"]
"""``"unsent"``: nothing reached the peer. ``"refused"``: it answered with an error, for nothing. ``"lost"``: it may have
worked and billed, and its answer never arrived."""


def fate_of(error: BaseException) -> Fate:
    """What became of a request whose attempt raised this."""
    code = getattr(error, "code", None)
    status = getattr(error, "status", None)
    if code in _LOCAL:
        return "unsent"
    if isinstance(status, int) and status >= 400:
        return "refused"
    if code == "transport" and any(
        isinstance(link, (ConnectionRefusedError, socket.gaierror)) or type(link).__name__ in _CONNECT
        for link in chain(error)
    ):
        return "unsent"
    return "refused" if code in _REFUSED else "lost"


def is_retryable(error: BaseException) -> bool:
    """Whether the same request may be sent again: DSPy's own classification, by the error's code."""
    return isinstance(error, (LMError, lm15.LM15Error)) and getattr(error, "code", None) in _RETRYABLE


def remember_attempts(error: BaseException, attempts: int) -> None:
    """Note on an error how often the model was asked, for the message that `unwrap` makes of it."""
    try:
        error.agenthelm_attempts = attempts  # type: ignore[attr-defined]
    except (AttributeError, TypeError):  # an exception type may take no attributes; the count is then left out
        pass


def unwrap(error: Exception) -> Exception:
    """The error that a user should see in place of what DSPy made of it.

    DSPy wraps whatever an engine raises. So in an error of DSPy's an error of ours is looked for, and comes out as it
    was first raised; a failure of the model's endpoint, or an answer that can't be read, becomes a `ModelCallError` of
    one clear line; anything else is returned as it is.
    """
    if isinstance(error, AdapterParseError):
        return _unreadable(error)
    if not isinstance(error, (LMError, lm15.LM15Error)):
        return error
    attempts = 1
    for link in chain(error, handled=False):
        if isinstance(link, AgentHelmError):
            return link
        attempts = max(attempts, getattr(link, "agenthelm_attempts", 1))
    return _call_error(error, attempts)


def _call_error(error: Exception, attempts: int) -> ModelCallError:
    model = str(getattr(error, "model", None) or "the model")
    status = getattr(error, "status", None)
    text = getattr(error, "message", None)
    text = scrub(str(error) if text is None else text)
    said, _, _ = text.partition("To fix:")  # the peer's words, and then DSPy's advice
    reason = next((line.strip() for line in said.splitlines() if line.strip()), _in_words(error))
    if len(reason) > 200:
        reason = f"{reason[:199]}…"
    times = f" after {attempts} attempts" if attempts > 1 else ""
    made = ModelCallError(
        f"model {model!r} failed{times}: {reason}{f' (HTTP {status})' if status else ''}",
        model=model,
        attempts=attempts,
        status=status if isinstance(status, int) else None,
    )
    made.__cause__ = error
    return made


def _in_words(error: Exception) -> str:
    """The kind of an error whose peer said nothing: ``LMRateLimitError`` is a rate limit error."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removeprefix("LM")).lower()


def _unreadable(error: AdapterParseError) -> ModelCallError:
    fields = ", ".join(error.signature.output_fields) if error.signature is not None else "the fields asked for"
    answer = " ".join(scrub(str(error.lm_response)).split())
    answer = f"{answer[:119]}…" if len(answer) > 120 else answer
    made = ModelCallError(
        f"the model's answer can't be read as {fields}: {answer!r}; a larger model may follow the format",
        model=str(getattr(error, "model", None) or "the model"),
        attempts=1,
    )
    made.__cause__ = error
    return made
