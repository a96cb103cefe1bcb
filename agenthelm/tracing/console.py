"""Traces as a person reads them: a tree with durations, tokens, cost and errors, printed when a trace ends."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode

from agenthelm.tracing import names
from agenthelm.tracing.scrub import plain

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from rich.text import Text
    from rich.tree import Tree

    from agenthelm.tracing.screen import Screen

__all__ = ["TreeProcessor"]

_LONGEST: Final = 200
_WIDEST: Final = 10_000
_STYLES: Final = {
    names.INVOKE_WORKFLOW: "bold",
    names.INVOKE_AGENT: "bold cyan",
    names.EXECUTE_TOOL: "yellow",
    names.CHAT: "magenta",
    names.EMBEDDINGS: "magenta",
}


class TreeProcessor(SpanProcessor):
    """Collects the spans of each trace and prints them as a tree when its outermost span ends.

    Args:
        console: Where to print; standard error by default.
    """

    def __init__(self, console: Screen | None = None) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._open: dict[int, set[int]] = {}
        self._ended: dict[int, list[ReadableSpan]] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note that a span is open."""
        context = span.context
        if context is not None:
            with self._lock:
                self._open.setdefault(context.trace_id, set()).add(context.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span; print its trace when none of it is open any more."""
        context = span.context
        if context is None:
            return
        with self._lock:
            self._ended.setdefault(context.trace_id, []).append(span)
            still_open = self._open.get(context.trace_id, set())
            still_open.discard(context.span_id)
            if still_open:
                return
            self._open.pop(context.trace_id, None)
            spans = self._ended.pop(context.trace_id)
        self._print(spans)

    def shutdown(self) -> None:
        """Print what ended of traces that did not."""
        with self._lock:
            unfinished = list(self._ended.values())
            self._open.clear()
            self._ended.clear()
        for spans in unfinished:
            self._print(spans)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits."""
        return True

    def _print(self, spans: list[ReadableSpan]) -> None:
        console = self._console
        if console is None:
            from agenthelm.tracing.screen import Screen

            console = Screen(stderr=True)
            if not console.is_terminal:
                console.width = _WIDEST  # a log file has no edge to wrap at
        try:
            for part in render(spans):
                console.print(part)
        except OSError:  # nobody reads standard error any more; the run goes on
            return


@dataclass(slots=True)
class _Node:
    """A span among those it contains, with what they used together."""

    span: ReadableSpan
    children: list[_Node] = field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    unpriced: bool = False

    def add_up(self) -> None:
        """Sum tokens and cost from the leaves; what a run's own span says of its cost is the same sum."""
        own = _attributes(self.span)
        operation = own.get(names.OPERATION_NAME)
        if operation in {names.CHAT, names.EMBEDDINGS}:
            self.tokens_in = int(own.get(names.USAGE_INPUT, 0))
            self.tokens_out = int(own.get(names.USAGE_OUTPUT, 0))
            self.unpriced = names.COST_USD not in own and bool(self.tokens_in or self.tokens_out)
        if operation in {names.CHAT, names.EMBEDDINGS, names.EXECUTE_TOOL}:  # a tool's is what it charged itself
            self.cost = float(own.get(names.COST_USD, 0.0))
        for child in self.children:
            child.add_up()
            self.tokens_in += child.tokens_in
            self.tokens_out += child.tokens_out
            self.unpriced = self.unpriced or child.unpriced
            self.cost += child.cost


def render(spans: Iterable[ReadableSpan]) -> list[Tree | Text]:
    """Make trees of finished spans, one for each span whose parent is not among them, in order of their start.

    Below each tree stands the id of its trace, and of its run where it has one.
    """
    from rich.text import Text
    from rich.tree import Tree

    nodes = {span.context.span_id: _Node(span) for span in sorted(spans, key=_start) if span.context is not None}
    roots: list[_Node] = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent.span_id) if node.span.parent is not None else None
        (roots if parent is None else parent.children).append(node)
    made: list[Tree | Text] = []
    for root in roots:
        root.add_up()
        tree = Tree(_line(root), guide_style="dim")
        _grow(tree, root)
        made += [tree, Text(_ids(root.span), style="dim")]
    return made


def _ids(span: ReadableSpan) -> str:
    trace = f"trace {span.context.trace_id:032x}" if span.context is not None else ""
    run_id = _attributes(span).get(names.RUN_ID)
    return f"{trace}  run {plain(str(run_id))}" if run_id else trace


def _grow(tree: Tree, node: _Node) -> None:
    for child in node.children:
        _grow(tree.add(_line(child)), child)


def _line(node: _Node) -> Text:
    """One span on one line. Built as plain text: data is never markup."""
    from rich.text import Text

    span, own = node.span, _attributes(node.span)
    line = Text(_short(span.name), style=_STYLES.get(str(own.get(names.OPERATION_NAME)), ""))
    line.append(f"  {_duration(span)}", style="green")
    for fact in _facts(node, own):
        line.append(f"  {_short(fact)}", style="dim")
    if span.status.status_code is StatusCode.ERROR:
        line.append(f"  ✗ {_short(_error(node, own))}", style="bold red")
    return line


def _error(node: _Node, own: Mapping[str, Any]) -> str:
    """What failed; the message only where it happened, and not again on all that contain it."""
    kind = str(own.get(names.ERROR_TYPE, "error")).rpartition(".")[2]
    message = node.span.status.description or ""
    passed_on = any(child.span.status.description == message for child in node.children)
    return kind if passed_on or message in {"", kind} else f"{kind}: {message}"


def _facts(node: _Node, own: Mapping[str, Any]) -> list[str]:
    facts = []
    if node.tokens_in or node.tokens_out:
        facts.append(f"{node.tokens_in:,} → {node.tokens_out:,} tokens")
    if node.cost or node.unpriced:
        facts.append(f"{'at least ' if node.unpriced else ''}${node.cost:.6f}".rstrip("0").rstrip("."))
    if retries := own.get(names.RETRY_COUNT):
        facts.append(f"{retries} {'retry' if retries == 1 else 'retries'}")
    if own.get(names.LATE):
        facts.append("late")
    if outcome := own.get(names.APPROVAL_OUTCOME):
        wait = own.get(names.APPROVAL_WAIT)
        by = own.get(names.APPROVAL_APPROVER)
        facts.append(f"{outcome}{f' by {by}' if by else ''}{f' after {wait:.1f} s' if wait else ''}")
    if any(link.attributes and link.attributes.get(names.LINK_KIND) == "undoes" for link in node.span.links):
        facts.append("undo")
    if status := own.get(names.SAGA_STATUS):
        facts.append(str(status))
    return facts


def _attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0


def _duration(span: ReadableSpan) -> str:
    seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _short(text: str) -> str:
    text = plain(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
