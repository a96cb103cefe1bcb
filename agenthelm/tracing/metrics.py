"""The instruments, with the conventions' names, units and buckets; fed when a span ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agenthelm.tracing import names

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

__all__ = ["measure"]

_DURATIONS: Final = {
    names.CHAT: names.METRIC_OPERATION_DURATION,
    names.EMBEDDINGS: names.METRIC_OPERATION_DURATION,
    names.EXECUTE_TOOL: names.METRIC_TOOL_DURATION,
    names.INVOKE_AGENT: names.METRIC_AGENT_DURATION,
    names.INVOKE_WORKFLOW: names.METRIC_WORKFLOW_DURATION,
}
"""Which histogram takes an operation's duration."""

_DIMENSIONS: Final = (
    names.OPERATION_NAME,
    names.PROVIDER_NAME,
    names.REQUEST_MODEL,
    names.RESPONSE_MODEL,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
    names.AGENT_NAME,
    names.TOOL_NAME,
    names.WORKFLOW_NAME,
)
"""What measurements are told apart by. Never an id of a run or a session: those have no bounded number of values."""


class Instruments:
    """The instruments of one meter."""

    __slots__ = ("_approval_wait", "_approvals", "_cost", "_durations", "_sagas", "_tokens")

    def __init__(self, meter: Meter) -> None:
        self._durations = {
            name: meter.create_histogram(
                name, "s", _DESCRIPTIONS[name], explicit_bucket_boundaries_advisory=names.DURATION_BUCKETS
            )
            for name in _DESCRIPTIONS
        }
        self._tokens = meter.create_histogram(
            names.METRIC_TOKEN_USAGE, "{token}", "Tokens used by one request to a model.",
            explicit_bucket_boundaries_advisory=names.TOKEN_BUCKETS,
        )  # fmt: skip
        self._cost = meter.create_counter(names.METRIC_COST, "{USD}", "What calls cost, in US dollars.")
        self._sagas = meter.create_counter(names.METRIC_SAGAS, "{saga}", "Runs that ended, by status.")
        self._approvals = meter.create_counter(names.METRIC_APPROVALS, "{approval}", "Approvals asked for, by outcome.")
        self._approval_wait = meter.create_histogram(
            names.METRIC_APPROVAL_WAIT, "s", "How long approvals took.",
            explicit_bucket_boundaries_advisory=names.DURATION_BUCKETS,
        )  # fmt: skip

    def record(self, values: Mapping[str, Any], elapsed: float, error: str | None) -> None:
        """Book what one span was about.

        Args:
            values: The span's attributes.
            elapsed: Its duration in seconds.
            error: Its ``error.type``, if it failed.
        """
        dimensions = {key: values[key] for key in _DIMENSIONS if values.get(key) is not None}
        duration = _DURATIONS.get(values[names.OPERATION_NAME])
        if duration is not None:
            ended = dimensions if error is None else {**dimensions, names.ERROR_TYPE: error}
            self._durations[duration].record(elapsed, ended)
        for key, kind in ((names.USAGE_INPUT, "input"), (names.USAGE_OUTPUT, "output")):
            if duration == names.METRIC_OPERATION_DURATION and values.get(key) is not None:
                self._tokens.record(values[key], {**dimensions, names.TOKEN_TYPE: kind})
        # A run's and an agent's cost is the sum of their calls' and would be counted twice.
        if values.get(names.COST_USD) and duration in {names.METRIC_OPERATION_DURATION, names.METRIC_TOOL_DURATION}:
            self._cost.add(values[names.COST_USD], dimensions)
        if (status := values.get(names.SAGA_STATUS)) is not None:
            self._sagas.add(1, {**dimensions, names.SAGA_STATUS: status})
        if (outcome := values.get(names.APPROVAL_OUTCOME)) is not None:
            asked = {**dimensions, names.APPROVAL_OUTCOME: outcome}
            self._approvals.add(1, asked)
            if (wait := values.get(names.APPROVAL_WAIT)) is not None:
                self._approval_wait.record(wait, asked)


_DESCRIPTIONS: Final = {
    names.METRIC_OPERATION_DURATION: "Duration of one request to a model.",
    names.METRIC_TOOL_DURATION: "Duration of one tool call, its retries included.",
    names.METRIC_AGENT_DURATION: "Duration of one run of an agent.",
    names.METRIC_WORKFLOW_DURATION: "Duration of one run, or of a flow inside one.",
}

_made: tuple[object, Instruments | None] = (None, None)


def measure(meter: Meter, values: Mapping[str, Any], elapsed: float, error: str | None) -> None:
    """Book one span on the instruments of a meter."""
    global _made
    seen, instruments = _made
    if instruments is None or seen is not meter:
        instruments = Instruments(meter)
        _made = (meter, instruments)
    instruments.record(values, elapsed, error)
