"""``traces export`` of logs of any length: a page at a time, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from agenthelm import InMemoryStorage, JsonStorage, SqliteStorage
from agenthelm.cli import _events, _session
from agenthelm.core.storage.base import EVENTS, BaseStorage, Record, StoredRecord
from agenthelm.exceptions import StorageError
from tests.support.cli import Cli

PAGE = 10
EVENTS_IN_ALL = 9 * PAGE + 5

READ: dict[str, Callable[[str], list[str]]] = {
    "json": lambda text: [event["id"] for event in json.loads(text)],
    "csv": lambda text: [row["run_id"] for row in csv.DictReader(io.StringIO(text))],
    "md": lambda text: [line.split(" | ")[2] for line in text.splitlines()[2:]],
}
"""The calls that an export names, by format."""
formats = pytest.mark.parametrize("form", READ)


class Page(list[StoredRecord]):
    """A page that can be watched."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class CountingStorage(InMemoryStorage):
    """Counts the pages that are read, and those that somebody still holds when the next one is."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Page] = weakref.WeakSet()
        self.pages: list[int] = []
        self.held = 0
        self.breaks_at: int | None = None

    async def aclose(self) -> None:
        """It is looked at by one command after another."""

    async def read(self, stream: str, **options: Any) -> list[StoredRecord]:
        assert options["limit"] <= PAGE
        if len(self.pages) == self.breaks_at:
            raise StorageError("the disk is gone")
        self.held = max(self.held, len(self.alive))
        page = Page(await super().read(stream, **options))
        self.alive.add(page)
        self.pages.append(len(page))
        return page


def _event(number: int) -> dict[str, Any]:
    return {
        "id": f"c{number}", "run_id": f"c{number}", "tool_name": f"c{number}", "kind": "tool", "outcome": "success",
        "timestamp": f"2026-01-01T00:{number // 60:02}:{number % 60:02}+00:00", "inputs": {"text": 'ü\n{}[]",'},
        "outputs": {}, "execution_time": 0.5, "estimated_cost_usd": 0.0,
    }  # fmt: skip


def _names(numbers: range) -> list[str]:
    return [f"c{number}" for number in numbers]


async def _fill(storage: BaseStorage) -> None:
    for number in range(EVENTS_IN_ALL):
        await storage.append([Record(EVENTS, _event(number))])


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr(_events, "_PAGE", PAGE)
    return Cli(tmp_path)


@pytest.fixture
def storage(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> CountingStorage:
    storage = CountingStorage()
    anyio.run(_fill, storage)
    monkeypatch.setattr(_session, "stored", lambda settings: True)
    monkeypatch.setattr(_session, "open_storage", lambda settings: storage)
    return storage


@formats
@pytest.mark.parametrize("to_file", [False, True], ids=["to stdout", "to a file"])
def test_an_export_holds_one_page_at_a_time(cli: Cli, storage: CountingStorage, form: str, to_file: bool) -> None:
    done = cli("traces", "export", "-f", form, *(["-o", "calls"] if to_file else []))
    text = (cli.folder / "calls").read_text("utf-8") if to_file else done.stdout
    assert READ[form](text) == _names(range(EVENTS_IN_ALL))
    assert storage.pages == [PAGE] * 9 + [5]
    assert storage.held <= 1
    assert (f"{EVENTS_IN_ALL} calls written to calls" in done.stderr) is to_file


@formats
def test_the_latest_calls_are_exported_oldest_first_a_page_at_a_time(
    cli: Cli, storage: CountingStorage, form: str
) -> None:
    for limit in (PAGE - 3, PAGE + 3, EVENTS_IN_ALL, EVENTS_IN_ALL + 7):
        text = cli("traces", "export", "-f", form, "--limit", str(limit)).stdout
        assert READ[form](text) == _names(range(max(0, EVENTS_IN_ALL - limit), EVENTS_IN_ALL))
    assert storage.held <= 1


@formats
def test_an_export_of_nothing_is_a_document_too(cli: Cli, storage: CountingStorage, form: str) -> None:
    assert READ[form](cli("traces", "export", "-f", form, "--tool", "nobody").stdout) == []
    assert READ[form](cli("traces", "export", "-f", form, "--tool", "nobody", "--limit", "3").stdout) == []


def test_an_export_that_breaks_off_leaves_the_file_as_it_was(cli: Cli, storage: CountingStorage) -> None:
    before = cli.write("calls.json", "what was there")
    storage.breaks_at = 3
    assert "the disk is gone" in cli("traces", "export", "-o", "calls.json", code=1).stderr
    assert before.read_text("utf-8") == "what was there"
    assert list(cli.folder.iterdir()) == [before]


def test_a_file_that_is_replaced_stays_as_private_as_it_was(cli: Cli, storage: CountingStorage) -> None:
    before = cli.write("calls.json", "what was there")
    before.chmod(0o600)
    cli("traces", "export", "-o", "calls.json")
    assert READ["json"](before.read_text("utf-8")) == _names(range(EVENTS_IN_ALL))
    assert before.stat().st_mode & 0o777 == 0o600


def test_an_export_is_not_led_into_another_file_by_a_link_that_somebody_else_put_there(
    cli: Cli, storage: CountingStorage
) -> None:
    precious = cli.write("precious.txt", "what was there")
    (cli.folder / f".calls.json.{os.getpid()}").symlink_to(precious)
    cli("traces", "export", "-o", "calls.json")
    assert precious.read_text("utf-8") == "what was there"


def test_an_export_follows_a_link_and_writes_into_what_is_no_file(cli: Cli, storage: CountingStorage) -> None:
    there = cli.write("there.json", "")
    (cli.folder / "link.json").symlink_to(there)
    cli("traces", "export", "-o", "link.json")
    assert (cli.folder / "link.json").is_symlink()
    assert READ["json"](there.read_text("utf-8")) == _names(range(EVENTS_IN_ALL))
    cli("traces", "export", "-o", "/dev/null")
    assert not Path("/dev/null").is_file()


def _damage_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE fresh SET data = '{torn' WHERE position IN (5, 17, 18, 94)")
    database.close()


def _damage_lines(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines(keepends=True)
    for number in (5, 17, 18, 94):
        lines[number + 1] = lines[number + 1][:30] + "\n"  # the first line says what file it is
    path.write_text("".join(lines), "utf-8")


@pytest.mark.parametrize(
    ("name", "make", "damage"),
    [("log.db", SqliteStorage, _damage_database), ("log.jsonl", JsonStorage, _damage_lines)],
    ids=["SQLite", "JSON Lines"],
)
def test_unreadable_calls_are_left_out_and_nothing_after_them(
    cli: Cli, name: str, make: Callable[[Path], BaseStorage], damage: Callable[[Path], None]
) -> None:
    async def fill() -> None:
        async with make(cli.folder / name) as storage:
            await _fill(storage)

    anyio.run(fill)
    damage(cli.folder / name)
    cli.env["AGENTHELM_STORAGE"] = name
    readable = [name for number, name in enumerate(_names(range(EVENTS_IN_ALL))) if number not in (5, 17, 18, 94)]
    exported = cli("traces", "export")
    assert READ["json"](exported.stdout) == readable
    assert "left out: 4 unreadable records" in exported.stderr
    assert READ["json"](cli("traces", "export", "-n", "90").stdout) == readable[-90:]
    assert READ["json"](cli("traces", "export", "-n", "3").stdout) == readable[-3:]
    assert sum(entry["calls"] for entry in json.loads(cli("traces", "stats", "--json").stdout)) == len(readable)
