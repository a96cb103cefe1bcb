"""``agenthelm doctor``: what would be used, what is missing, and what to do about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from agenthelm.cli._command import Failure, command
from agenthelm.cli._options import ApiBase, App, Json, Model

if TYPE_CHECKING:
    from agenthelm.config import Settings

__all__ = ["app"]

app: typer.Typer = typer.Typer()

_LOW_SPACE = 200 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "note", "missing"]
    detail: str


@command(app, "doctor")
async def doctor(model: Model = None, api_base: ApiBase = None, app: App = None, json: Json = False) -> None:
    """Check model, memory, embedder and disk: what is used, and what is missing. Changes nothing."""
    from agenthelm.cli import _console, _session

    settings = _session.settings_from(model=model, api_base=api_base, app=app)
    findings = [*_versions(), *_sources(settings), _app(settings), _model(settings), *_disk(settings)]
    findings += await _memory(settings)
    findings.append(_telemetry(settings))
    missing = [finding for finding in findings if finding.state == "missing"]
    if json:
        _console.print_json({"ok": not missing, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if missing:
        raise Failure(1)


def _print(findings: list[Finding]) -> None:
    from rich.text import Text

    from agenthelm.cli import _console

    marks = {"ok": ("✓", "green"), "note": ("·", "yellow"), "missing": ("✗", "bold red")}
    rows = [(Text(*marks[finding.state]), finding.what, finding.detail) for finding in findings]
    _console.out().print(_console.table(["", "what", "found"], rows))
    missing = sum(finding.state == "missing" for finding in findings)
    _console.say(f"{missing} missing" if missing else "all there", style="bold red" if missing else "green")


def _versions() -> Iterator[Finding]:
    import platform

    parts = [f"{name} {metadata.version(name)}" for name in ("agenthelm", "dspy", "chromadb", "redis", "anyio")]
    yield Finding("versions", "ok", f"Python {platform.python_version()}, {', '.join(parts)}")


def _sources(settings: Settings) -> Iterator[Finding]:
    said = ", ".join(f"{name} ({source.removesuffix(f': {name}')})" for name, source in settings.sources.items())
    yield Finding("settings", "ok", said or "defaults only")


def _app(settings: Settings) -> Finding:
    from agenthelm.cli import _session
    from agenthelm.core.tool import TOOL_REGISTRY
    from agenthelm.exceptions import AgentHelmError

    if settings.app is None:
        return Finding("app", "note", "none; --app or `app` names the file with your agents and tools")
    try:
        _, own = _session.load_app(settings, agents=False)
        TOOL_REGISTRY.check()
    except AgentHelmError as exc:
        return Finding("app", "missing", str(exc))
    return Finding(
        "app", "ok", f"{settings.app}: agents {', '.join(own) or 'none'}; tools {', '.join(TOOL_REGISTRY) or 'none'}"
    )


def _model(settings: Settings) -> Finding:
    from agenthelm.agent.models import detect_model, resolve_model
    from agenthelm.agent.pricing import METADATA
    from agenthelm.exceptions import AgentHelmError

    try:
        name = str(resolve_model(settings.model, api_base=settings.api_base).model)
    except AgentHelmError as exc:
        return Finding("model", "missing", " ".join(str(exc).split()))
    how = "" if settings.model else ", picked by its key" if name == detect_model() else ""
    where = f" at {settings.api_base}" if settings.api_base else ""
    price = METADATA.price(name)
    known = f", ${price.input * 1e6:g} in and ${price.output * 1e6:g} out per million tokens" if price else ""
    return Finding("model", "ok", f"{name}{where}{how}{known}")


def _disk(settings: Settings) -> Iterator[Finding]:
    home = settings.home
    there = home
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding("disk", "missing", f"can't write to {home}; set AGENTHELM_HOME to another folder")
        return
    free = shutil.disk_usage(there).free
    room = f"{free / 1024**3:.1f} GiB free"
    made = "" if home.exists() else ", made when first needed"
    yield Finding("disk", "ok" if free > _LOW_SPACE else "missing", f"{home} ({room}{made})")
    storage = Path(settings.storage.partition(":///")[2] or settings.storage)
    size = f", {storage.stat().st_size / 1024**2:.1f} MiB" if storage.exists() else ", made when first needed"
    yield Finding("storage", "ok", settings.storage + ("" if "://" in settings.storage else size))


async def _memory(settings: Settings) -> list[Finding]:
    from agenthelm.cli._units import seconds
    from agenthelm.exceptions import AgentHelmError
    from agenthelm.memory import MemoryHub

    # A store that isn't there yet would be made by asking it how it is.
    places = {"short_term": settings.memory_url, "semantic": settings.vectors}
    absent = {name: place for name, place in places.items() if not _there(place)}
    asked = {name: "memory://" if name in absent else place for name, place in places.items()}
    try:
        async with MemoryHub(**asked, embedder=settings.embedder) as hub:
            health = await hub.health()
            embedder = hub.semantic.embedder
    except AgentHelmError as exc:
        return [Finding("memory", "missing", str(exc))]
    findings = []
    for name, store in health.items():
        what = name.replace("_", "-") + " memory"
        if name in absent:
            findings.append(Finding(what, "ok", f"{absent[name]}, made when first needed"))
        elif store.ok:
            findings.append(Finding(what, "ok", f"{store.location} (answered in {seconds(store.latency)})"))
        else:
            findings.append(Finding(what, "missing", store.error or store.location))
    hint = " (offline, by words; minilm and embedding models go by meaning)" if embedder.startswith("lexical") else ""
    return [*findings, Finding("embedder", "ok", embedder + hint)]


def _there(place: str) -> bool:
    if "://" in place and not place.startswith("sqlite:"):
        return True
    return Path(place.removeprefix("sqlite:///")).exists()


def _telemetry(settings: Settings) -> Finding:
    otlp = (
        util.find_spec("opentelemetry.exporter") is not None
        and util.find_spec("opentelemetry.exporter.otlp") is not None
    )
    if settings.trace == "otlp" and not otlp:
        return Finding("traces", "missing", "otlp needs the extra: pip install 'agenthelm[otlp]'")
    where = settings.trace or "off"
    return Finding("traces", "ok", f"{where}; OTLP export {'is' if otlp else 'is not'} installed")
