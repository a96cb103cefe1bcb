"""The SQLite file: its schema and what leads to it, its rights, and how a page of events is found."""

from __future__ import annotations

import random
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from agenthelm.core.storage import EVENTS, Between, Record, SqliteStorage, sqlite_query
from agenthelm.core.storage.codec import INDEXED_FIELDS, matches
from agenthelm.core.storage.sqlite_schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION, connect
from agenthelm.core.storage.sqlite_storage import _Readers
from agenthelm.exceptions import ConfigError, CorruptRecordError, StalePositionError, StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "log.db"


async def test_only_the_owner_may_read_the_files_and_their_folder(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record("a", {})])
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == {"log.db": 0o600, "log.db-wal": 0o600, "log.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_commits_outlive_a_power_failure(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record("a", {})])
        connection = storage._log._open()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA fullfsync").fetchone() == (1,)  # what it takes on macOS


def older_file(path: Path) -> None:
    """A file as the first version of the schema wrote it, with 3,000 events and a run."""
    path.parent.mkdir()
    old = sqlite3.connect(path)
    for statement in MIGRATIONS[0]():
        old.execute(statement)
    old.execute(
        "INSERT INTO streams VALUES (1, 'events', 3000, NULL, 1.0, 2.0), (2, 'run:1', 2, 'open', 1.0, 1.0), (3, 'run:2', 1, 'open', 1.0, 1.0)"
    )
    old.execute(
        """INSERT INTO records VALUES ('run:1', 1, '{"n":2}'), ('run:2', 0, '{"n":3}'), ('run:1', 0, '{"n":1}')"""
    )
    for n in range(3000):
        old.execute(
            "INSERT INTO events (position, execution_time, data) VALUES (?, ?, ?)",
            (n, n / 10, f'{{"n":{n},"execution_time":{n / 10}}}'),
        )
    old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()


async def test_an_older_file_is_migrated_on_first_use_and_keeps_its_records(path: Path) -> None:
    older_file(path)
    async with SqliteStorage(path) as storage:
        found = await storage.read(EVENTS, where={"execution_time": Between(100, 100.2)})
        assert [event.data["n"] for event in found] == [1000, 1001, 1002]
        assert await storage.append([Record("run:1", {"n": 4})], {"run:1": 2}) == {"run:1": 3}
        assert [record.data for record in await storage.read("run:1")] == [{"n": 1}, {"n": 2}, {"n": 4}]
        assert [record.data for record in await storage.read("run:2")] == [{"n": 3}]
        assert {info.name for info in await storage.streams(where={"state": "open"})} == {"run:1", "run:2"}
        later = [Record(EVENTS, {"n": n, "execution_time": 5_000}) for n in range(3_000, 3_100)]
        assert await storage.append(later) == {EVENTS: 3_100}
        found = await storage.read(EVENTS, where={"execution_time": Between(299.9, None)}, newest_first=True)
        assert [event.position for event in found] == list(range(3_099, 2_998, -1))
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    zones = check.execute("SELECT zone, low_execution_time, high_execution_time FROM zones").fetchall()
    assert zones == [(0, 0, 102.3), (1, 102.4, 204.7), (2, 204.8, 5_000), (3, 5_000, 5_000)]
    check.close()


async def test_what_many_runs_append_at_once_shares_pages(path: Path) -> None:
    runs, wal = range(100), path.with_name("log.db-wal")

    async def commit(storage: SqliteStorage) -> None:
        await storage.append([Record(f"run:{run}", {"text": "x" * 500}) for run in runs])

    async with SqliteStorage(path) as storage:
        for _ in range(8):
            await commit(storage)
        storage._log._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        await commit(storage)
        assert wal.stat().st_size < len(runs) / 2 * 4096


async def test_a_migration_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older_file(path)
    monkeypatch.setattr(
        "agenthelm.core.storage.sqlite_schema.MIGRATIONS", (*MIGRATIONS[:1], lambda: ["DELETE FROM events", "nonsense"])
    )
    async with SqliteStorage(path) as storage:
        with pytest.raises(StorageError, match=r"log\.db"):
            await storage.read(EVENTS)
    monkeypatch.undo()
    async with SqliteStorage(path) as storage:
        assert len(await storage.read(EVENTS)) == 3_000


async def test_a_newer_file_is_refused_with_what_to_do(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record("a", {})])
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    async with SqliteStorage(path) as storage:
        for use in (storage.append([Record("a", {})]), storage.read("a"), storage.drop("a")):
            with pytest.raises(StorageError, match="upgrade AgentHelm"):
                await use


async def test_somebody_elses_database_is_refused_and_not_touched(path: Path) -> None:
    path.parent.mkdir()
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE users (name)")
    theirs.commit()
    async with SqliteStorage(path) as storage:
        with pytest.raises(StorageError, match="a SQLite file of something else"):
            await storage.append([Record("a", {})])
    assert theirs.execute("SELECT name FROM sqlite_schema").fetchall() == [("users",)]
    theirs.close()


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_path_that_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="InMemoryStorage"):
        SqliteStorage(path)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SqliteStorage("~/log.db").path == tmp_path / "log.db"


async def test_an_unreadable_record_refuses_its_journal_and_is_skipped_among_events(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(stream, {"n": n}) for stream in ("run:1", "run:2", EVENTS) for n in range(3)])
        direct = sqlite3.connect(path)
        direct.execute("UPDATE records SET data = 'x' WHERE stream = 'run:1' AND position = 1")
        direct.execute("UPDATE fresh SET data = 'x' WHERE position = 1")
        direct.commit()
        direct.close()
        with pytest.raises(CorruptRecordError, match="record 1 of stream 'run:1'"):
            await storage.read("run:1")
        assert len(await storage.read("run:2")) == 3
        assert [event.data["n"] for event in await storage.read(EVENTS)] == [0, 2]
        assert storage.skipped == 1


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        ("DELETE FROM records WHERE stream = 'run:1' AND position = 1", 1),
        ("DELETE FROM records WHERE stream = 'run:1' AND position >= 1", 1),
        ("DELETE FROM records WHERE stream = 'run:1'", 0),
        ("DELETE FROM streams WHERE name = 'run:1'", 0),
    ],
    ids=["in the middle", "at the end", "all", "the stream"],
)
async def test_a_journal_that_lacks_a_record_is_refused(path: Path, damage: str, missing: int) -> None:
    """As after `sqlite3 .recover`, or with a damaged page that shows fewer rows than it had."""
    async with SqliteStorage(path) as storage:
        await storage.append([Record(stream, {"n": n}) for stream in ("run:1", "run:2") for n in range(3)])
        direct = sqlite3.connect(path)
        direct.execute(damage)
        direct.commit()
        direct.close()
        for asked in ({}, {"limit": 1}, {"newest_first": True}):
            with pytest.raises(CorruptRecordError, match=f"record {missing} of stream 'run:1'"):
                await storage.read("run:1", **asked)
        assert len(await storage.read("run:2")) == 3
        await storage.drop("run:1")
        assert await storage.read("run:1") == []


async def test_a_string_is_not_found_in_a_list_or_an_object(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        for stream in ("run:1", EVENTS):
            await storage.append([Record(stream, {"note": note}) for note in (["b"], {"b": 1}, "b", 7)])
            for where in ({"note": '["b"]'}, {"note": Between("Z", "a")}, {"note": Between(high="a")}):
                assert await storage.read(stream, where=where) == []
            assert [record.position for record in await storage.read(stream, where={"note": Between(low="B")})] == [2]
            assert [record.position for record in await storage.read(stream, where={"note": Between()})] == [0, 1, 2, 3]


async def test_text_that_utf8_cannot_hold_fails_its_own_append_only(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        outcomes: list[object] = []

        async def write(name: str) -> None:
            try:
                outcomes.append(await storage.append([Record(name, {}), Record(EVENTS, {"tool_name": name})]))
            except StorageError as exc:
                outcomes.append(str(exc))

        async with anyio.create_task_group() as group:
            for name in ("a", "\ud800", "b"):
                group.start_soon(write, name)
        assert sum(isinstance(outcome, dict) for outcome in outcomes) == 2
        assert len(await storage.read(EVENTS)) == 2


async def test_nothing_is_found_by_text_that_utf8_cannot_hold(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(EVENTS, {"run_id": "a"}), Record("run:a", {})])
        assert await storage.read("run:\udcff") == []
        assert await storage.read(EVENTS, where={"run_id": "\udcff"}) == []
        assert await storage.streams(prefix="run:\udcff") == []
        assert len(await storage.read(EVENTS, where={"run_id": "a"})) == 1


@pytest.mark.parametrize("newest_first", [False, True])
async def test_events_are_found_in_one_order_whether_they_are_indexed_yet_or_not(
    path: Path, newest_first: bool
) -> None:
    count = 2 * 256 + 10
    async with SqliteStorage(path) as storage, SqliteStorage(path) as other:
        for n in range(count):  # by turns, so that neither goes by what it remembers of the other's appends
            await (storage, other)[n % 2].append(
                [Record(EVENTS, {"n": n, "outcome": "success" if n % 3 else "failed"})]
            )
        with closing(sqlite3.connect(path)) as check:
            assert check.execute("SELECT count(*), min(position) FROM fresh").fetchone() == (10, 512)
            assert check.execute("SELECT count(*), max(position) FROM events").fetchone() == (512, 511)
        expected = [n for n in range(count) if n % 3 == 0]
        if newest_first:
            expected.reverse()
        paged: list[int] = []
        after: int | None = None
        while page := await storage.read(
            EVENTS, where={"outcome": "failed"}, limit=7, newest_first=newest_first, after=after
        ):
            assert len(page) == min(7, len(expected) - len(paged))
            paged += [event.data["n"] for event in page]
            after = page[-1].position
        assert paged == expected
        await other.drop(EVENTS)
        assert await storage.read(EVENTS) == []
        assert await storage.append([Record(EVENTS, {"n": 0})]) == {EVENTS: 1}
        assert [event.data for event in await other.read(EVENTS)] == [{"n": 0}]


async def test_no_more_positions_are_remembered_than_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenthelm.core.storage.sqlite_log._REMEMBERED", 20)
    async with SqliteStorage(path) as storage:
        for n in range(50):
            assert await storage.append([Record(f"run:{n}", {})], {f"run:{n}": 0}) == {f"run:{n}": 1}
            assert await storage.append([Record("run:0", {})], {"run:0": n + 1}) == {"run:0": n + 2}
        assert len(storage._log._positions) <= 21
        with pytest.raises(StalePositionError):
            await storage.append([Record("run:1", {})], {"run:1": 0})


async def test_that_holds_for_appends_that_are_one_statement_as_well(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthelm.core.storage.sqlite_log._REMEMBERED", 20)
    monkeypatch.setattr("agenthelm.core.storage.sqlite_log._MANY", 1)
    async with SqliteStorage(path) as storage:
        for n in range(50):
            assert await storage.append([Record(f"run:{n}", {})], {f"run:{n}": 0}) == {f"run:{n}": 1}
        assert len(storage._log._positions) <= 21


async def test_after_closing_nothing_of_it_is_open(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(EVENTS, {})])
        await storage.read(EVENTS)
    assert list(path.parent.iterdir()) == [path]  # whoever closes the file last takes away what is beside it


def test_a_reader_that_is_under_way_while_the_storage_closes_closes_its_own_connection(path: Path) -> None:
    readers = _Readers(path, busy_timeout=1)
    path.parent.mkdir(parents=True)
    with closing(connect(path, busy_timeout=1, writing=True)):
        with readers.borrowed((0, 0)) as connection:
            readers.close()
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


def test_reading_makes_no_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(sqlite3.OperationalError), closing(connect(path, busy_timeout=1, writing=False)) as connection:
        connection.execute("SELECT 1 FROM sqlite_master")
    assert not path.exists()


async def test_every_advertised_filter_has_its_index(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(EVENTS, {})])
        connection = storage._log._open()
        for field in INDEXED_FIELDS:
            (plan,) = connection.execute(f"EXPLAIN QUERY PLAN SELECT 1 FROM events WHERE {field} = 1").fetchall()
            assert f"USING COVERING INDEX events_by_{field}" in plan[3]
        plan = connection.execute("EXPLAIN QUERY PLAN SELECT * FROM streams WHERE state = 'open' ORDER BY number DESC")
        assert [row[3] for row in plan] == ["SEARCH streams USING INDEX streams_by_state (state=?)"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("many", [1, 50, 10_000])
async def test_finds_the_same_page_whichever_way_it_goes(
    path: Path, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `many` decides between sorting what an index gives and walking the zones; both must agree with the plain meaning.
    monkeypatch.setattr(sqlite_query, "MANY", many)
    monkeypatch.setattr(sqlite_query, "_COUNTED", many * 3)
    random_ = random.Random(7)
    rows: list[dict[str, Any]] = []
    for n in range(3_000):
        late = random_.random() < 0.1
        row: dict[str, Any] = {"n": n, "tool_name": random_.choice("abc"), "outcome": random_.choice(["ok", "failed"])}
        row["timestamp"] = f"2026-01-01T{(n - 200 * late) // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}+00:00"
        row["execution_time"] = random_.choice([None, random_.random(), 5 + random_.random() if n < 1_000 else 0.0])
        row["estimated_cost_usd"] = n if random_.random() < 0.01 else "free"
        rows.append(row)
    async with SqliteStorage(path) as storage:
        await storage.append([Record(EVENTS, row) for row in rows])
        for trial in range(77):
            where: dict[str, Any] = {}
            if trial % 2:
                low = random_.random() * 6
                where["execution_time"] = Between(low, random_.choice([None, low + random_.random()]))
            if trial % 3 == 0:
                hour = random_.randrange(2)
                where["timestamp"] = Between(f"2026-01-01T0{hour}:3", f"2026-01-01T0{hour + 1}:1")
            if trial % 5 == 0:
                where["estimated_cost_usd"] = Between(high=random_.randrange(5_000))
            if trial % 7 < 3:
                where["tool_name"] = random_.choice("abc")
            if trial % 4 == 0:
                where["outcome"] = random_.choice(["ok", "failed", None])
            newest, after = trial % 11 < 6, random_.choice([None, random_.randrange(3_000)])
            found = await storage.read(EVENTS, where=where, limit=20, newest_first=newest, after=after)
            wanted = [row["n"] for row in rows if matches(row, where)]
            if newest:
                wanted.reverse()
            if after is not None:
                wanted = [n for n in wanted if (n < after if newest else n > after)]
            assert [event.data["n"] for event in found] == wanted[:20], (where, newest, after)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_ten_thousand_finished_runs_do_not_slow_the_listing_of_open_ones(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(f"run:{n}", {}, "closed") for n in range(10_000)])
        await storage.append([Record("run:open", {}, "open")])
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection = storage._log._open()
        connection.set_progress_handler(count, 10)
        found = sqlite_query.find_streams(connection, state="open", prefix="run:", limit=None, newest_first=True)
        connection.set_progress_handler(None, 0)
        assert [info.name for info in found] == ["run:open"]
        assert steps < 20  # of ten instructions each


async def test_a_field_that_no_query_can_name_is_refused(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(EVENTS, {})])
        with pytest.raises(ValueError, match="quotation mark"):
            await storage.read(EVENTS, where={'a"b': 1})


async def test_a_drop_that_fails_drops_nothing(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record("a", {})])
    async with SqliteStorage(path, busy_timeout=0.05) as storage:
        await storage.read("a")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another process has locked it for too long"):
            await storage.drop("a")
        other.close()
        assert len(await storage.read("a")) == 1
        await storage.drop("a")
        assert await storage.read("a") == []


async def test_unreadable_events_match_no_filter_on_other_fields(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(EVENTS, {"extra": 1}) for _ in range(2)])
        direct = sqlite3.connect(path)
        direct.execute("UPDATE fresh SET data = '{torn' WHERE position = 0")
        direct.commit()
        direct.close()
        assert [event.position for event in await storage.read(EVENTS, where={"extra": 1})] == [1]


async def test_a_range_finds_what_follows_events_without_the_field_and_what_ends_a_zone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SqliteStorage(path) as storage:
        timed = {1: 5.0, 1023: 7.0}
        events = [{"run_id": "a", **({"execution_time": timed[n]} if n in timed else {})} for n in range(1024)]
        await storage.append([Record(EVENTS, event) for event in events])
        for many in (sqlite_query.MANY, 1):  # collected from the index, or walked zone by zone
            monkeypatch.setattr(sqlite_query, "MANY", many)
            for where in ({"execution_time": Between(low=1)}, {"run_id": "a", "execution_time": Between(low=1)}):
                assert [event.position for event in await storage.read(EVENTS, where=where)] == [1, 1023]


async def test_a_range_that_no_event_is_in_finds_nothing_whatever_else_is_asked(path: Path) -> None:
    async with SqliteStorage(path) as storage:
        await storage.append([Record(EVENTS, {"tool_name": "a", "execution_time": 1.0}) for _ in range(3)])
        for where in ({}, {"tool_name": "a"}):
            assert await storage.read(EVENTS, where={**where, "execution_time": Between(2.0, 3.0)}) == []
            assert len(await storage.read(EVENTS, where={**where, "execution_time": Between(1.0, 1.0)})) == 3
        assert await storage.read(EVENTS, where={"tool_name": "b", "execution_time": Between(2.0, 3.0)}) == []


@pytest.mark.parametrize("begin", ["BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"])  # for the first SQLite itself waits
async def test_a_file_that_another_process_holds_while_it_is_made_is_named_after_the_time_allowed(
    path: Path, begin: str
) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute(begin)
        other.execute("CREATE TABLE theirs (x)")
        async with SqliteStorage(path, busy_timeout=0.02) as storage:
            with pytest.raises(StorageError, match="another process has locked it for too long"):
                await storage.append([Record("a", {})])
            other.execute("ROLLBACK")
            await storage.append([Record("a", {})])  # and may be used once it is free
            assert len(await storage.read("a")) == 1
    finally:
        other.close()
