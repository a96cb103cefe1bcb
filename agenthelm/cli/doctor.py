"""``agenthelm doctor``: what would be used, what is missing, and what to do about it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from agenthelm.cli._command import Failure, command
from agenthelm.cli._options import ApiBase, App, Json, Model
from agenthelm.tracing.scrub import scrub

if TYPE_CHECKING:
    from agenthelm.config import Settings

__all__ = ["app"]

app: typer.Typer = typer.Typer(add_completion=False)

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
    _session.apply_pricing(settings)
    findings = [*_versions(), *_sources(settings), _app(settings), _model(settings), *_disk(settings)]
    findings.append(await _storage(settings))
    findings += await _memory(settings)
    findings += [_approvals(settings), _telemetry(settings)]
    findings = [replace(finding, detail=scrub(finding.detail)) for finding in findings]
    missing = [finding for finding in findings if finding.state == "missing"]
    if json:
        _console.print_json({"ok": not missing, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if missing:
        raise Failure(1)


def _print(findings: list[Finding]) -> None:
    from rich.text import Text

    from agenthelm.cli import _console, _tables

    marks = {"ok": ("✓", "green"), "note": ("·", "yellow"), "missing": ("✗", "bold red")}
    drawn = {state: Text(_console.sign(mark), style) for state, (mark, style) in marks.items()}
    rows = [(drawn[finding.state], finding.what, finding.detail) for finding in findings]
    _tables.print_table(["!", "!what", "found"], rows)
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
        _, own = _session.load_app(settings)
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
    if why := _unwritable(home):
        yield Finding("disk", "missing", f"can't write to {home}: {why}; set AGENTHELM_HOME to another folder")
        return
    free = shutil.disk_usage(_existing(home)).free
    room = f"{free / 1024**3:.1f} GiB free"
    made = "" if home.exists() else ", made when first needed"
    yield Finding("disk", "ok" if free > _LOW_SPACE else "missing", f"{home} ({room}{made})")


async def _storage(settings: Settings) -> Finding:
    from agenthelm.cli import _session
    from agenthelm.exceptions import AgentHelmError

    location = settings.storage
    try:
        path = _session.storage_path(settings)
    except AgentHelmError as exc:
        return Finding("storage", "missing", str(exc))
    if path is None:
        return Finding("storage", "ok", location)
    if why := _unwritable(path):
        return Finding("storage", "missing", f"can't write to {path}: {why}; set AGENTHELM_STORAGE to another file")
    if not path.exists():
        return Finding("storage", "ok", f"{location}, made when first needed")
    try:
        async with _session.open_storage(settings) as storage:
            await storage.streams(limit=1)
    except AgentHelmError as exc:
        return Finding("storage", "missing", str(exc))
    return Finding("storage", "ok", f"{location}, {_size(path)}")


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1024**2:.1f} MiB"


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _unwritable(path: Path) -> str | None:
    """Why a file or folder can't be written, or made; None if it can. Tried, because permissions are not all there is."""
    there = _existing(path)
    try:
        if there.is_dir():
            with tempfile.TemporaryFile(dir=there):
                return None
        if there != path:
            return f"{there} is no folder"
        with there.open("ab"):
            return None
    except OSError as exc:
        return exc.strerror or str(exc)


async def _memory(settings: Settings) -> list[Finding]:
    from agenthelm.cli import _session
    from agenthelm.cli._units import seconds
    from agenthelm.exceptions import AgentHelmError
    from agenthelm.memory import MemoryHub

    on_disk, absent = _session.memory_paths(settings), _session.absent_stores(settings)
    look = _session.without_new_stores(settings)  # a store that isn't there yet would be made by asking it how it is
    try:
        async with MemoryHub(short_term=look.memory_url, semantic=look.vectors, embedder=look.embedder) as hub:
            health = await hub.health()
            embedder = hub.semantic.embedder
    except AgentHelmError as exc:
        return [Finding("memory", "missing", str(exc))]
    findings = []
    for name, store in health.items():
        what = name.replace("_", "-") + " memory"
        place = on_disk.get(name)
        if place is not None and (why := _unwritable(place)):
            findings.append(Finding(what, "missing", f"can't write to {place}: {why}; name another place for it"))
        elif name in absent:
            findings.append(Finding(what, "ok", f"{absent[name]}, made when first needed"))
        elif store.ok:
            findings.append(Finding(what, "ok", f"{store.location} (answered in {seconds(store.latency)})"))
        else:
            findings.append(Finding(what, "missing", store.error or store.location))
    hint = " (offline, by words; minilm and embedding models go by meaning)" if embedder.startswith("lexical") else ""
    return [*findings, Finding("embedder", "ok", embedder + hint)]


def _approvals(settings: Settings) -> Finding:
    from agenthelm.cli import _session
    from agenthelm.exceptions import AgentHelmError

    try:
        _session.approval_handler(settings, prompt=lambda handler: handler)
    except AgentHelmError as exc:
        return Finding("approvals", "missing", str(exc))
    return Finding("approvals", "ok", settings.approve)


def _telemetry(settings: Settings) -> Finding:
    otlp = _installed("opentelemetry.exporter.otlp.proto.http")
    if settings.trace == "otlp" and not otlp:
        return Finding("traces", "missing", "otlp needs the extra: pip install 'agenthelm[otlp]'")
    where = settings.trace or "off"
    return Finding("traces", "ok", f"{where}; OTLP export {'is' if otlp else 'is not'} installed")


def _installed(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it would be in
        return False
