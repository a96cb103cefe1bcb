"""Where telemetry goes: the tree on the console, JSON Lines, and targets that make no sense."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from agenthelm.exceptions import ConfigError
from agenthelm.tracing import names, spans
from agenthelm.tracing.console import TreeProcessor
from agenthelm.tracing.providers import use_providers
from agenthelm.tracing.screen import Screen
from agenthelm.tracing.setup import Telemetry, configure
from tests.support.telemetry import foreign


@pytest.fixture
def screen() -> Iterator[io.StringIO]:
    out = io.StringIO()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(TreeProcessor(Screen(file=out, width=150, color_system=None)))
    with Telemetry(provider):
        yield out


def _shown(out: io.StringIO) -> str:
    """What was printed, with durations and ids made comparable."""
    text = re.sub(r"[\d.]+ (µs|ms|s)\b", "TIME", out.getvalue())
    return re.sub(r"trace [0-9a-f]{32}", "trace TRACE", "\n".join(line.rstrip() for line in text.splitlines()))


def test_a_run_is_a_tree_with_tokens_cost_and_errors(screen: io.StringIO) -> None:
    with (
        suppress(PermissionError),
        spans.workflow("trip", run_id="run-1") as run,
    ):
        with spans.agent("planner"):
            with spans.chat("gpt") as chat:
                chat.set(names.USAGE_INPUT, 1204)
                chat.set(names.USAGE_OUTPUT, 350)
                chat.set(names.COST_USD, 0.00123)
            with spans.tool("book_hotel") as tool:
                tool.set(names.RETRY_COUNT, 2)
                tool.set(names.COST_USD, 0.05)
        run.set(names.SAGA_STATUS, "rolled_back")
        with spans.agent("payer"):
            with spans.chat("local") as chat:
                chat.set(names.USAGE_INPUT, 10)
            with spans.tool("pay") as tool:
                tool.set(names.APPROVAL_OUTCOME, "denied")
                tool.set(names.APPROVAL_APPROVER, "ann")
                raise PermissionError("too dear")
    assert _shown(screen) == (
        "invoke_workflow trip  TIME  1,214 → 350 tokens  at least $0.05123  rolled_back  ✗ PermissionError\n"
        "├── invoke_agent planner  TIME  1,204 → 350 tokens  $0.05123\n"
        "│   ├── chat gpt  TIME  1,204 → 350 tokens  $0.00123\n"
        "│   └── execute_tool book_hotel  TIME  $0.05  2 retries\n"
        "└── invoke_agent payer  TIME  10 → 0 tokens  at least $0  ✗ PermissionError\n"
        "    ├── chat local  TIME  10 → 0 tokens  at least $0\n"
        "    └── execute_tool pay  TIME  denied by ann  ✗ PermissionError: too dear\n"
        "trace TRACE  run run-1"
    )


def test_a_tool_shows_what_it_charged_and_what_the_calls_inside_it_cost(screen: io.StringIO) -> None:
    with spans.tool("research") as tool:
        with spans.chat("gpt") as chat:
            chat.set(names.COST_USD, 0.04)
        tool.set(names.COST_USD, 0.05)
    assert "execute_tool research  TIME  $0.09\n" in _shown(screen)


def test_undo_and_waiting_show(screen: io.StringIO) -> None:
    with spans.tool("book") as booked:
        booked.set(names.APPROVAL_OUTCOME, "approved")
        booked.set(names.APPROVAL_WAIT, 3.21)
        booked.set(names.LATE, True)
    with spans.tool("cancel", links=[(*booked.ids, "undoes")]):
        pass
    shown = screen.getvalue()
    assert "late  approved after 3.2 s" in shown
    assert "undo" in shown.splitlines()[2]


def test_data_is_neither_markup_nor_steers_the_terminal(screen: io.StringIO) -> None:
    with suppress(ValueError), spans.tool("[red]t[/foo]"):
        raise ValueError("[/bold] \x1b[2J\n" + "x" * 1000)
    assert "[red]t[/foo]" in screen.getvalue()
    assert "[/bold]" in screen.getvalue()
    assert "\\x1b[2J\\nxxx" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()
    assert len(screen.getvalue()) < 600


def test_what_was_not_finished_is_printed_at_the_end() -> None:
    out = io.StringIO()
    processor = TreeProcessor(Screen(file=out, width=150, color_system=None))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    telemetry = Telemetry(provider)
    with spans.workflow("w", run_id="r"):
        with spans.tool("t"):
            pass
        assert out.getvalue() == ""
        telemetry.shutdown()
        telemetry.shutdown()
        assert "execute_tool t" in out.getvalue()


def test_traces_that_run_at_the_same_time_are_printed_one_by_one(screen: io.StringIO) -> None:
    one, other = spans.tool("one"), spans.tool("other")
    import contextvars

    first, second = contextvars.copy_context(), contextvars.copy_context()
    first.run(one.__enter__)
    second.run(other.__enter__)
    first.run(one.__exit__, None, None, None)
    assert "one" in screen.getvalue()
    assert "other" not in screen.getvalue()
    second.run(other.__exit__, None, None, None)
    assert "other" in screen.getvalue()


def test_a_console_nobody_reads_does_not_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    output = os.fstat(sys.stdout.fileno())
    monkeypatch.setattr(sys, "stderr", Broken())
    done = []
    with configure("console"):
        for name in ("first", "second"):
            with spans.tool(name):
                done.append(name)
    assert done == ["first", "second"]
    assert os.path.samestat(os.fstat(sys.stdout.fileno()), output)


@pytest.mark.parametrize("target", ["console", "true", True, "1", "Console"])
def test_the_console_is_standard_error(target: str | bool, capsys: pytest.CaptureFixture[str]) -> None:
    with configure(target), spans.tool("t"):
        pass
    captured = capsys.readouterr()
    assert "execute_tool t" in captured.err
    assert captured.out == ""


def test_a_file_gets_one_span_a_line_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for name in ("first", "second"):
        with configure(path), spans.workflow(name, run_id="r"), spans.tool("t"):
            pass
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["name"] for line in lines] == [
        "execute_tool t", "invoke_workflow first", "execute_tool t", "invoke_workflow second",
    ]  # fmt: skip
    assert all(foreign(line["attributes"]) == set() for line in lines)
    assert lines[0]["resource"]["attributes"]["service.name"] == "agenthelm"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_host_s_service_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    with configure(tmp_path / "trace.jsonl") as telemetry:
        assert telemetry.tracer_provider.resource.attributes["service.name"] == "shop"


def test_long_values_are_cut_unless_the_environment_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.jsonl"
    with configure(path), spans.tool("t") as span:
        span.set("agenthelm.long", "x" * 100_000)
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "10")
    with configure(path), spans.tool("t") as span:
        span.set("agenthelm.long", "x" * 100_000)
    lengths = [len(json.loads(line)["attributes"]["agenthelm.long"]) for line in path.read_text().splitlines()]
    assert lengths == [16_384, 10]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("consol", "Did you mean 'console'"), ("oltp", "Did you mean 'otlp'"), (False, "not 'False'"), ("", "not ''"),
        ("/nonexistent/trace.jsonl", "can't be written to /nonexistent/trace.jsonl: No such file"),
    ],
)  # fmt: skip
def test_a_target_that_makes_no_sense_is_an_error(target: str | bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(target)
    with spans.tool("t") as span:
        assert not span.recording


def test_otlp_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"agenthelm\[otlp\]"):
        configure("otlp")


def test_shutting_down_gives_the_global_providers_back() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    use_providers(provider)
    with configure("console"):
        pass
    with spans.tool("t") as span:
        assert not span.recording
