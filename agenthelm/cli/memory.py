"""``agenthelm memory``: what agents remember, to look at and to put right."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer

from agenthelm.cli._command import Failure, command
from agenthelm.cli._options import Json, Limit, Namespace, not_empty

__all__ = ["app"]

app: typer.Typer = typer.Typer(help="Read and write what agents remember.", no_args_is_help=True, add_completion=False)

Session = Annotated[
    str | None,
    typer.Option(
        "--session",
        "-s",
        metavar="ID",
        callback=not_empty,
        help="The session's own values instead of the shared ones.",
    ),
]
Key = Annotated[str, typer.Argument(metavar="KEY")]


@asynccontextmanager
async def _open(*, looking: bool = False) -> AsyncIterator[Any]:
    """The memory; ``looking``: a store that isn't there is not made, and holds nothing."""
    from agenthelm.cli import _session
    from agenthelm.exceptions import ConfigError, MemoryValueError

    settings = _session.settings_from()
    try:
        async with _session.open_hub(_session.without_new_stores(settings) if looking else settings) as hub:
            yield hub
    except MemoryValueError as exc:  # what was typed is nothing that a memory holds
        raise ConfigError(str(exc)) from exc


def _context(hub: Any, session: str | None, namespace: str) -> Any:
    return hub.create_context(session or "agenthelm-cli", namespace=namespace)


@command(app, "get")
async def get(key: Key, session: Session = None, namespace: Namespace = "default", json: Json = False) -> None:
    """Print a value: text as it is, anything else as JSON."""
    from agenthelm.cli import _console

    missing = object()
    async with _open(looking=True) as hub:
        memory = _context(hub, session, namespace)
        value = await (memory.read(key, missing) if session else memory.get_shared(key, missing))
    if value is missing:
        _console.say(f"error: no value under {key!r} {_where(session, namespace)}")
        raise Failure(1)
    if json or not isinstance(value, str):
        _console.print_json(value)
    else:
        sys.stdout.write((_console.escape_controls(value) if sys.stdout.isatty() else value) + "\n")


def _where(session: str | None, namespace: str) -> str:
    return f"in session {session!r} of namespace {namespace!r}" if session else f"shared in namespace {namespace!r}"


@command(app, "set")
async def set_value(
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON, or any text; - reads stdin.")],
    ttl: Annotated[float | None, typer.Option("--ttl", metavar="SECONDS", help="Forget it after so long.")] = None,
    session: Session = None,
    namespace: Namespace = "default",
) -> None:
    """Keep a value."""
    from agenthelm.cli import _console
    from agenthelm.exceptions import ConfigError
    from agenthelm.memory.values import LONGEST_TTL

    if ttl is not None and not 0 < ttl <= LONGEST_TTL:
        raise ConfigError(f"--ttl must be above 0, and at most {LONGEST_TTL:g} seconds, not {ttl:g}", setting="ttl")
    parsed = _parsed(_given(value))
    async with _open() as hub:
        memory = _context(hub, session, namespace)
        await (memory.write(key, parsed, ttl=ttl) if session else memory.set_shared(key, parsed, ttl=ttl))
    _console.note(f"kept {_where(session, namespace)}{_how_long(hub.short_term)}")


def _given(argument: str) -> str:
    """An argument, or what stdin says without the line end that `echo`, an editor and `get` put behind it."""
    return sys.stdin.read().removesuffix("\n") if argument == "-" else argument


def _parsed(text: str) -> object:
    """What a text says as JSON; itself, if a memory can't hold that as JSON."""
    from agenthelm.memory.values import encode

    try:
        value: object = jsonlib.loads(text)
        encode(value)
    except (ValueError, RecursionError):
        return text
    return value


def _how_long(memory: Any) -> str:
    return ", until this command ends: it is in memory://" if memory.backend.store == "memory" else ""


@command(app, "list")
async def list_keys(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Only keys that begin so.")] = "",
    session: Session = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """List keys and their values."""
    from agenthelm.cli import _console, _tables
    from agenthelm.exceptions import MemoryStoreError

    async with _open(looking=True) as hub:
        memory = _context(hub, session, namespace)
        keys = await (memory.list_keys(prefix) if session else memory.list_shared(prefix))
        read = memory.read if session else memory.get_shared
        values, unreadable = {}, []
        for key in keys:
            try:
                values[key] = await read(key)
            except MemoryStoreError as exc:
                await hub.short_term.ping()  # raises if it is the store, and not this value
                unreadable.append(str(exc))
    if json:
        _console.print_json(values)
    elif not keys:
        _console.note(f"no values {_where(session, namespace)}")
    else:
        rows = [(key, _console.clean(value, width=100)) for key, value in values.items()]
        _tables.print_table(["!key", "value"], rows)
    for error in unreadable:
        _console.say(f"error: {error}")
    if unreadable:
        raise Failure(1)


@command(app, "search")
async def search(
    query: Annotated[str, typer.Argument(metavar="QUERY")],
    session: Annotated[
        str | None,
        typer.Option("--session", "-s", metavar="ID", callback=not_empty, help="Only what this session remembered."),
    ] = None,
    namespace: Namespace = "default",
    limit: Limit = 5,
    min_score: Annotated[float, typer.Option("--min-score", min=0, max=1, help="Only matches at least so near.")] = 0.0,
    json: Json = False,
) -> None:
    """Find remembered texts by what they are about, nearest first."""
    from agenthelm.cli import _console, _tables

    async with _open(looking=True) as hub:
        memory = _context(hub, session, namespace)
        found = await memory.search(query, limit, min_score=min_score, this_session=session is not None)
    if json:
        _console.print_json([{"id": m.id, "score": m.score, "text": m.text, "metadata": m.metadata} for m in found])
    elif not found:
        _console.note(f"nothing remembered in namespace {namespace!r} is near that")
    else:
        rows = [(f"{match.score:.2f}", match.id, _console.clean(match.text, width=160)) for match in found]
        _tables.print_table(["#score", "!id", "text"], rows)


@command(app, "remember")
async def remember(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to remember; - reads stdin.")],
    id: Annotated[str | None, typer.Option("--id", help="Its id; a text under the same id is replaced.")] = None,  # noqa: A002
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="ID", callback=not_empty, help="In whose name.")
    ] = None,
    namespace: Namespace = "default",
) -> None:
    """Remember a text for the namespace, and print its id."""
    from agenthelm.cli import _console

    content = _given(text)
    async with _open() as hub:
        made = await _context(hub, session, namespace).remember(content, id=id)
    sys.stdout.write(made + "\n")
    if brief := _how_long(hub.semantic):
        _console.note(f"remembered{brief}")


@command(app, "forget")
async def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A key; with --text the id of a remembered text.")],
    text: Annotated[bool, typer.Option("--text", help="Forget a remembered text by its id.")] = False,
    session: Session = None,
    namespace: Namespace = "default",
) -> None:
    """Forget a value, or a remembered text."""
    from agenthelm.cli import _console
    from agenthelm.exceptions import ConfigError

    if text and session is not None:
        raise ConfigError(
            "--session is for values; a text that was remembered is the namespace's: leave --session out",
            setting="session",
        )
    async with _open(looking=True) as hub:
        memory = _context(hub, session, namespace)
        if text:
            gone = await memory.forget(name)
        else:
            gone = await (memory.delete(name) if session else memory.delete_shared(name))
    if not gone:
        what = (
            f"text with the id {name!r} in namespace {namespace!r}"
            if text
            else f"value under {name!r} {_where(session, namespace)}"
        )
        _console.say(f"error: no {what}")
        raise Failure(1)
    _console.note("forgotten")


@command(app, "stats")
async def stats(namespace: Namespace = "default", json: Json = False) -> None:
    """What is kept, where, and by which embedder."""
    from agenthelm.cli import _console, _session, _tables
    from agenthelm.cli._units import count

    absent = _session.absent_stores(_session.settings_from())
    async with _open(looking=True) as hub:
        health = {
            name: replace(store, location=absent.get(name, store.location))
            for name, store in (await hub.health()).items()
        }
        memory = _context(hub, None, namespace)
        sessions = await hub.sessions(namespace) if health["short_term"].ok else {}
        shared = len(await memory.list_shared()) if health["short_term"].ok else 0
        texts = await memory.count() if health["semantic"].ok else 0
        remembered = hub.collection(namespace)
        recorded = await remembered.backend.open(remembered.collection) if health["semantic"].ok else None
        embedder = recorded.name if recorded else remembered.embedder
    if json:
        _console.print_json(
            {
                "namespace": namespace,
                "sessions": sessions,
                "shared": shared,
                "texts": texts,
                "embedder": embedder,
                "health": health,
            }
        )
    else:
        rows = [
            (name.replace("_", "-"), store.location, *_state(store, absent=name in absent))
            for name, store in health.items()
        ]
        _tables.print_table(["!memory", "where", "state", "#answered in"], rows)
        held = f"{count(shared, 'shared value')}, {count(texts, 'remembered text')}"
        _console.out().print(f"namespace {namespace}: {held}, embedder {embedder}")
        if sessions:
            _tables.print_table(["!session", "#values"], sessions.items())
    if not all(store.ok for store in health.values()):
        raise Failure(1)


def _state(store: Any, *, absent: bool) -> tuple[str, str]:
    """How a store is, and how long it took to say so."""
    from agenthelm.cli._units import seconds

    if absent:
        return "made when first needed", ""
    return "ok" if store.ok else store.error, seconds(store.latency)
