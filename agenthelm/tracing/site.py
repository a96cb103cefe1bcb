"""One open span, or the shared stand-in where nobody listens."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias

from agenthelm.exceptions import BudgetExceededError
from agenthelm.telling import describe, message_of
from agenthelm.tracing import names
from agenthelm.tracing.scrub import scrub

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Link, Span, SpanKind, Tracer

__all__ = ["NOTHING", "Site", "SpanHandle", "SpanIds", "SpanLink", "captures_content", "prepared"]

_log = logging.getLogger(__name__)

SpanLink: TypeAlias = tuple[str | None, str | None] | tuple[str | None, str | None, str]
"""A span to link to, as it was stored: trace id and span id in hex, and how it is related (``undoes``, ``continues``)."""


SpanIds: TypeAlias = tuple[str | None, str | None]
"""A trace and a span in it, in hex; None where there is none."""


class SpanHandle(Protocol):
    """What a span verb yields."""

    @property
    def recording(self) -> bool:
        """Whether anybody will see what is set; spare the work of computing values where nobody does."""
        ...

    @property
    def listening(self) -> bool:
        """Whether anything set here is kept: by the span, or for the metrics."""
        ...

    @property
    def ids(self) -> SpanIds:
        """Trace and span, 32 and 16 hex digits; None where there is none."""
        ...

    def set(self, key: str, value: object) -> None:
        """Set an attribute; None is ignored.

        Content (see `names.CONTENT`) is dropped unless opted in, and written as JSON, masked.
        """
        ...

    def fail(self, error: BaseException | str) -> None:
        """Mark the span as failed; an exception that leaves the ``with`` block does so by itself."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def captures_content() -> bool:
    """Whether prompts, arguments and results may go into spans."""
    value = os.environ.get(names.CAPTURE_CONTENT)
    return value is not None and value.strip().lower() in {"span_only", "span_and_event", "true", "1"}


class _Nothing:
    """The handle where nobody listens."""

    __slots__ = ()

    recording: Final = False
    listening: Final = False

    @property
    def ids(self) -> SpanIds:
        """The span that a caller brought along, if one is in force."""
        api = sys.modules.get("opentelemetry.trace")
        return (None, None) if api is None else _hex(api.get_current_span())

    def set(self, key: str, value: object) -> None:
        """Nothing."""

    def fail(self, error: BaseException | str) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


NOTHING: Final = _Nothing()


def _hex(span: Span) -> SpanIds:
    try:
        context = span.get_span_context()
        return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else (None, None)
    except Exception as exc:  # noqa: BLE001 - a host's own span; see `Site`
        _lost(exc)
        return None, None


class Site:
    """One span while it is open.

    What a host's sampler, span processor or meter raises ends here: telemetry is lost, and what it is about goes on.
    """

    __slots__ = (
        "_began", "_client", "_error", "_later", "_links", "_meter", "_name", "_span", "_token", "_tracer", "_values",
    )  # fmt: skip

    def __init__(
        self,
        tracer: Tracer | None,
        meter: Meter | None,
        name: str,
        values: dict[str, Any],
        *,
        client: bool = False,
        links: Iterable[SpanLink] = (),
    ) -> None:
        self._tracer = tracer
        self._meter = meter
        self._name = name
        self._values = values
        self._client = client
        self._links = links
        self._span: Span | None = None
        self._token: Token[Context] | None = None
        self._error: str | None = None
        self._later: Mapping[str, object] = {}
        self._began = 0.0

    def __enter__(self) -> Self:
        try:
            self._start()
        except Exception as exc:  # noqa: BLE001 - see above
            _lost(exc)
        self._began = time.perf_counter()
        return self

    def _start(self) -> None:
        self._values = values = {key: _attribute(value) for key, value in self._values.items() if value is not None}
        if self._tracer is not None:
            from opentelemetry import context
            from opentelemetry.trace import SpanKind, set_span_in_context

            kind: SpanKind = SpanKind.CLIENT if self._client else SpanKind.INTERNAL
            self._span = self._tracer.start_span(
                self._name, kind=kind, attributes=values, links=_links(self._links), record_exception=False,
                set_status_on_exception=False,
            )  # fmt: skip
            self._token = context.attach(set_span_in_context(self._span))
            for key, value in self._later.items():
                self.set(key, value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        elapsed = time.perf_counter() - self._began
        if error is not None:
            self.fail(error)
        try:
            self._end(elapsed)
        except Exception as exc:  # noqa: BLE001 - see above
            _lost(exc)

    def _end(self, elapsed: float) -> None:
        try:
            if self._span is not None and self._token is not None:
                from opentelemetry import context

                context.detach(self._token)
                self._span.end()
        finally:
            if self._meter is not None:
                from agenthelm.tracing.metrics import measure

                measure(self._meter, self._values, elapsed, self._error)

    @property
    def recording(self) -> bool:
        return self._span is not None and self._span.is_recording()

    @property
    def listening(self) -> bool:
        return self._meter is not None or self.recording

    @property
    def ids(self) -> SpanIds:
        return NOTHING.ids if self._span is None else _hex(self._span)

    def set(self, key: str, value: object) -> None:
        if value is None:
            return
        try:
            self._set(key, value)
        except Exception as exc:  # noqa: BLE001 - see above
            _lost(exc)

    def _set(self, key: str, value: object) -> None:
        recording = self.recording
        if not recording and self._meter is None:
            return
        if key in names.CONTENT:
            if not recording or not captures_content():
                return
            value = _content(value)
        self._values[key] = attribute = _attribute(value)
        if not recording or self._span is None:
            return
        self._span.set_attribute(key, attribute)
        if (newer := names.BESIDE.get(key)) is not None:
            self._span.set_attribute(newer, attribute)

    def fail(self, error: BaseException | str) -> None:
        try:
            self._fail(error)
        except Exception as exc:  # noqa: BLE001 - see above
            _lost(exc)

    def _fail(self, error: BaseException | str) -> None:
        if isinstance(error, str):
            self._error, text = "_OTHER", scrub(error)
        else:
            self._error, text = _error_type(error), scrub(message_of(error) or type(error).__name__)
        if self._span is None or not self._span.is_recording():
            return
        from opentelemetry.trace import StatusCode

        if isinstance(error, BudgetExceededError):
            self._span.set_attribute(names.BUDGET_SCOPE, error.scope)
            self._span.set_attribute(names.BUDGET_RESOURCE, error.resource)
            self._span.set_attribute(names.BUDGET_LIMIT, error.limit)
            self._span.set_attribute(names.BUDGET_SPENT, error.spent)
        self._span.set_attribute(names.ERROR_TYPE, self._error)
        self._span.set_status(StatusCode.ERROR, text)
        if isinstance(error, Exception):
            # No stack trace: its source lines and chained messages may hold what was masked everywhere else.
            self._span.add_event("exception", {names.EXCEPTION_TYPE: self._error, names.EXCEPTION_MESSAGE: text})


_lost_some = False


def _lost(error: Exception) -> None:
    """Say that telemetry failed: once where it is seen, and to those who debug each time."""
    global _lost_some
    level, _lost_some = logging.DEBUG if _lost_some else logging.WARNING, True
    _log.log(level, "telemetry failed and is lost, the run is not affected: %s", scrub(describe(error)))


def _content(value: object) -> str:
    from agenthelm.tracing.redaction import masked

    safe = masked(value)
    return safe if isinstance(safe, str) else json.dumps(safe, ensure_ascii=False)


def prepared(handle: SpanHandle, values: Mapping[str, object]) -> SpanHandle:
    """A span on which these attributes are set as soon as it is entered."""
    if isinstance(handle, Site):
        handle._later = values
    return handle


def _attribute(value: object) -> Any:
    """A value as OpenTelemetry takes it: scalars and lists of strings; all else as JSON."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [scrub(str(item)) for item in value]
    return scrub(json.dumps(value, ensure_ascii=False, default=repr))


def _error_type(error: BaseException) -> str:
    if not isinstance(error, (Exception, KeyboardInterrupt, SystemExit, GeneratorExit)):
        return "cancelled"  # asyncio's and trio's cancellation have different names
    module, name = type(error).__module__, type(error).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _links(links: Iterable[SpanLink]) -> list[Link]:
    from agenthelm.tracing.context import link

    return [made for made in (link(*entry) for entry in links) if made is not None]
