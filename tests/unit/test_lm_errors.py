"""What a failed LM call means."""

from __future__ import annotations

import socket

import dspy
import pytest
from dspy import lm15

from agenthelm.agent.lm import unwrap
from agenthelm.agent.lm_errors import fate_of, is_retryable, remember_attempts
from agenthelm.exceptions import BudgetExceededError, ModelCallError, ToolInputError

BUDGET = BudgetExceededError(scope="run", resource="calls", limit=1, spent=1)


def raised_from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def test_an_error_of_ours_comes_out_as_it_was_raised() -> None:
    assert unwrap(raised_from(dspy.LMUnexpectedError("wrapped", model="m"), BUDGET)) is BUDGET


def test_the_agents_own_errors_are_left_alone() -> None:
    """Also one that was raised while an error of ours was handled: the agent had dealt with that one."""
    try:
        try:
            raise ToolInputError("bad", tool_name="t")
        except ToolInputError:
            raise ValueError("the agent's own") from None
    except ValueError as error:
        assert unwrap(error) is error  # noqa: PT017
    own = raised_from(ValueError("the agent's own"), BUDGET)
    assert unwrap(own) is own


def test_an_error_that_was_raised_from_itself_has_an_end() -> None:
    own = ValueError("the engine's own")
    made = unwrap(raised_from(dspy.LMUnexpectedError("wrapped", model="m"), raised_from(own, own)))
    assert isinstance(made, ModelCallError)


def test_a_failed_call_says_model_attempts_and_status() -> None:
    cause = lm15.ServerError("overloaded\nsecond line", status=503)
    remember_attempts(cause, 3)
    made = unwrap(raised_from(dspy.LMServerError("overloaded\nsecond line", model="openai/m", status=503), cause))
    assert isinstance(made, ModelCallError)
    assert str(made) == "model 'openai/m' failed after 3 attempts: overloaded (HTTP 503)"
    assert (made.model, made.attempts, made.status) == ("openai/m", 3, 503)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lm15.TransportError(""), "failed: transport error"),
        (lm15.RateLimitError("", status=429), "failed: rate limit error (HTTP 429)"),
        (dspy.LMRateLimitError(str(lm15.RateLimitError("")), status=429), "failed: rate limit error (HTTP 429)"),
        (dspy.LMServerError("", status=503), "failed: server error (HTTP 503)"),
        (dspy.LMInvalidRequestError("", model="openai/m", status=422), "failed: invalid request error (HTTP 422)"),
    ],
)
def test_an_empty_message_still_says_what_happened(error: Exception, said: str) -> None:
    assert str(unwrap(error)).endswith(said)


def test_an_unreadable_answer_is_shown_in_part() -> None:
    signature = dspy.Signature("question -> answer, count: int")
    error = dspy.utils.exceptions.AdapterParseError(
        adapter_name="ChatAdapter", signature=signature, lm_response="blah " * 100
    )
    made = unwrap(error)
    assert isinstance(made, ModelCallError)
    assert "answer, count" in str(made)
    assert len(str(made)) < 300


def test_a_key_that_the_peer_says_back_is_not_in_the_message() -> None:
    key = "sk-proj-abcdefghij0123456789abcdefghij"
    refused = unwrap(dspy.LMAuthError(f"Incorrect API key provided: {key}", model="m", status=401))
    unreadable = unwrap(
        dspy.utils.exceptions.AdapterParseError(
            adapter_name="ChatAdapter",
            signature=dspy.Signature("question -> answer"),
            lm_response=f"no access with {key}",
        )
    )
    assert str(refused) == "model 'm' failed: Incorrect API key provided: *** (HTTP 401)"
    assert "no access with ***" in str(unreadable)


FATES = [
    (lm15.RateLimitError("x", status=429), "refused", True),
    (lm15.ServerError("x", status=500), "refused", True),
    (lm15.AuthError("x", status=401), "refused", False),
    (lm15.InvalidRequestError("x"), "refused", False),
    (lm15.NotConfiguredError("x"), "unsent", False),
    (raised_from(lm15.TransportError("x"), ConnectionRefusedError()), "unsent", True),
    (raised_from(lm15.TransportError("x"), socket.gaierror()), "unsent", True),
    (lm15.TransportError("reset"), "lost", True),
    (lm15.ProviderError("not JSON", status=200), "lost", False),
    (lm15.StreamAssemblyError("cut"), "lost", False),
    (ValueError("a bug"), "lost", False),
    (dspy.LMRateLimitError("x", status=429), "refused", True),
]


@pytest.mark.parametrize(("error", "fate", "retryable"), FATES, ids=lambda value: type(value).__name__)
def test_what_became_of_the_request(error: Exception, fate: str, retryable: bool) -> None:
    assert fate_of(error) == fate
    assert is_retryable(error) is retryable
