"""A world that tools change: a SQLite file that counts each do and undo, and points at which a process can be killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.lowlevel

from agenthelm.core.executor import current_executor
from agenthelm.core.storage import BaseStorage, Record, StoredRecord, StreamInfo
from agenthelm.core.tool import ToolRegistry, tool

SCHEMA = """
CREATE TABLE things (id TEXT PRIMARY KEY, name TEXT NOT NULL, tool TEXT NOT NULL);
CREATE TABLE log (seq INTEGER PRIMARY KEY, verb TEXT NOT NULL, id TEXT NOT NULL, tool TEXT NOT NULL, changed INTEGER NOT NULL);
"""


@dataclass
class Points:
    """Every moment between two of which something becomes true; the process dies at the one it is told."""

    kill_at: str | None = None
    seen: list[str] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def hit(self, label: str) -> None:
        with self._guard:
            count = sum(known == label or known.startswith(f"{label} #") for known in self.seen)
            label = f"{label} #{count + 1}" if count else label
            self.seen.append(label)
        if label == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Doing:
    """One line of the world's own log."""

    verb: str
    id: str
    tool: str
    changed: bool


class World:
    """Things that exist, and a log of every attempt to make or remove one."""

    def __init__(self, path: Path | None = None, points: Points | None = None) -> None:
        self.points = points or Points()
        if path is not None:
            self.open(path)

    def open(self, path: Path) -> None:
        """Be the world of that file; tools that were made before follow."""
        self.path = path
        if not path.exists():
            with closing(self._connect()) as connection:
                connection.executescript(SCHEMA)

    def make(self, name: str, tool: str, thing: str | None = None, *, once: bool = False) -> str:
        """Make a thing; under ``once`` a thing that is there already stays as it is."""
        thing = thing or os.urandom(8).hex()
        self.points.hit(f"before doing {tool} {name}")
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            verb = "INSERT OR IGNORE" if once else "INSERT"
            changed = connection.execute(f"{verb} INTO things VALUES (?, ?, ?)", (thing, name, tool)).rowcount
            connection.execute("INSERT INTO log VALUES (NULL, 'do', ?, ?, ?)", (thing, tool, changed))
            connection.execute("COMMIT")
        self.points.hit(f"after doing {tool} {name}")
        return thing

    def remove(self, thing: str, tool: str) -> None:
        """Remove a thing; the log keeps whether it was there."""
        self.points.hit(f"before undoing {tool}")
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            changed = connection.execute("DELETE FROM things WHERE id = ?", (thing,)).rowcount
            connection.execute("INSERT INTO log VALUES (NULL, 'undo', ?, ?, ?)", (thing, tool, changed))
            connection.execute("COMMIT")
        self.points.hit(f"after undoing {tool}")

    def find(self, name: str, tool: str) -> str | None:
        with closing(self._connect()) as connection:
            row = connection.execute("SELECT id FROM things WHERE name = ? AND tool = ?", (name, tool)).fetchone()
        return None if row is None else str(row[0])

    def names(self) -> list[str]:
        with closing(self._connect()) as connection:
            return sorted(row[0] for row in connection.execute("SELECT name FROM things"))

    def things(self) -> dict[str, str]:
        """Name by id."""
        with closing(self._connect()) as connection:
            return dict(connection.execute("SELECT id, name FROM things").fetchall())

    def log(self) -> list[Doing]:
        with closing(self._connect()) as connection:
            rows = connection.execute("SELECT verb, id, tool, changed FROM log ORDER BY seq").fetchall()
        return [Doing(verb, thing, name, bool(changed)) for verb, thing, name, changed in rows]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=20, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")  # what dies is the process, not the machine
        return connection


def tools_of(world: World) -> ToolRegistry:
    """Tools of every kind that undoing tells apart.

    ``book``: takes a key, and so does what undoes it: safe to repeat. ``check``: undone by its result, once, and
    ``verify`` knows whether it happened. ``make``: undone by its result, once, and nobody knows. ``wrap``: does its
    work through other tools; what undoes it covers them; ``pack``
    does so too, and ``verify`` knows whether it came to its end. ``burn``: nothing undoes it. ``fail``: fails.
    """
    registry = ToolRegistry()
    effect: Any = {"side_effects": ["thing:write"], "registry": registry}

    @tool(compensating_tool="cancel", **effect)
    async def book(name: str, idempotency_key: str) -> dict[str, str]:
        await anyio.lowlevel.checkpoint()
        return {"thing": world.make(name, "book", idempotency_key, once=True)}

    @tool(idempotent=True, registry=registry)
    async def cancel(idempotency_key: str) -> None:
        world.remove(idempotency_key, "cancel")

    @tool(compensating_tool="cancel_sync", **effect)
    def book_sync(name: str, idempotency_key: str) -> dict[str, str]:
        return {"thing": world.make(name, "book_sync", idempotency_key, once=True)}

    @tool(idempotent=True, registry=registry)
    def cancel_sync(idempotency_key: str) -> None:
        world.remove(idempotency_key, "cancel_sync")

    def checked(name: str) -> Any:
        thing = world.find(name, "check")
        return {"thing": thing} if thing else False

    @tool(compensating_tool="uncheck", verify=checked, **effect)
    async def check(name: str) -> dict[str, str]:
        await anyio.lowlevel.checkpoint()
        return {"thing": world.make(name, "check")}

    @tool(registry=registry)
    async def uncheck(thing: str) -> None:
        world.remove(thing, "uncheck")

    @tool(compensating_tool="unmake", **effect)
    async def make(name: str) -> dict[str, str]:
        await anyio.lowlevel.checkpoint()
        return {"thing": world.make(name, "make")}

    @tool(registry=registry)
    def unmake(thing: str) -> None:
        world.remove(thing, "unmake")

    @tool(compensating_tool="unwrap", **effect)
    async def wrap(name: str, idempotency_key: str) -> dict[str, str]:
        executor = current_executor()
        assert executor is not None
        for part in ("left", "right"):
            await executor.call("book", {"name": f"{name}.{part}", "idempotency_key": f"{idempotency_key}/{part}"})
        return {"thing": world.make(name, "wrap", idempotency_key, once=True)}

    def packed(name: str) -> Any:
        thing = world.find(name, "pack")
        return {"thing": thing} if thing else False

    @tool(compensating_tool="unwrap", verify=packed, **effect)
    async def pack(name: str, idempotency_key: str) -> dict[str, str]:
        executor = current_executor()
        assert executor is not None
        for part in ("left", "right"):
            await executor.call("book", {"name": f"{name}.{part}", "idempotency_key": f"{idempotency_key}/{part}"})
        return {"thing": world.make(name, "pack", idempotency_key, once=True)}

    @tool(idempotent=True, registry=registry)
    async def unwrap(idempotency_key: str) -> None:
        for part in ("", "/right", "/left"):
            world.remove(f"{idempotency_key}{part}", "unwrap")

    @tool(**effect)
    async def burn(name: str) -> dict[str, str]:
        return {"thing": world.make(name, "burn")}

    @tool(registry=registry)
    async def fail(name: str) -> None:
        raise RuntimeError(f"{name} is not to be had")

    return registry


class PointStorage(BaseStorage):
    """A storage that passes a point before and after every append."""

    def __init__(self, inner: BaseStorage, points: Points) -> None:
        self.inner = inner
        self.points = points
        self.durable = inner.durable

    async def append(self, records: Sequence[Record], expected: Mapping[str, int] | None = None) -> dict[str, int]:
        kinds = [f"{r.data['type']} {r.data.get('effect', '')}".strip() for r in records if r.stream.startswith("run:")]
        label = "+".join(kinds) or "event"
        self.points.hit(f"before writing {label}")
        positions = await self.inner.append(records, expected)
        self.points.hit(f"after writing {label}")
        return positions

    async def read(self, stream: str, **options: Any) -> list[StoredRecord]:
        return await self.inner.read(stream, **options)

    async def streams(self, **options: Any) -> list[StreamInfo]:
        return await self.inner.streams(**options)

    async def drop(self, stream: str) -> None:
        await self.inner.drop(stream)

    async def aclose(self) -> None:
        await self.inner.aclose()
