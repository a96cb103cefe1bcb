"""The two ways in which a SQLite log writes a transaction: step by step, and as one statement."""

from __future__ import annotations

import gc
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenthelm.core.storage import sqlite_batch, sqlite_log
from agenthelm.core.storage.base import EVENTS, Record
from agenthelm.core.storage.codec import entries
from agenthelm.core.storage.sqlite_batch import Batch
from agenthelm.core.storage.sqlite_log import SqliteLog
from agenthelm.core.storage.sqlite_schema import connect
from agenthelm.core.storage.sqlite_storage import SqliteStorage
from agenthelm.core.storage.writer import Append
from agenthelm.exceptions import StalePositionError, StorageError

MANY = sqlite_log._MANY


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db", busy_timeout=5)
    yield log
    log.close()


def append(*records: Record, **expected: int) -> Append:
    return Append(entries(records), {name.replace("_", ":"): position for name, position in expected.items()})


def ready(log: SqliteLog) -> None:
    """The first transaction can't be one statement: nothing is known of the file yet."""
    log.commit([append(Record(EVENTS, {"n": -1}), Record("run:0", {}))])


def at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which transactions were one statement, from here on."""
    seen: list[bool] = []
    write_at_once, write = Batch.write_at_once, Batch.write

    def one(batch: Batch, connection: sqlite3.Connection) -> bool:
        done = write_at_once(batch, connection)
        if done:
            seen.append(True)
        return done

    def several(batch: Batch, connection: sqlite3.Connection) -> None:
        seen.append(False)
        write(batch, connection)

    monkeypatch.setattr(Batch, "write_at_once", one)
    monkeypatch.setattr(Batch, "write", several)
    return seen


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that is in a file, but for the time of day, and which events are in the indexes already."""
    asked = {
        "streams": "SELECT name, position, state FROM streams ORDER BY name",
        "records": "SELECT * FROM records ORDER BY stream, position",
        "events": "SELECT * FROM events UNION ALL SELECT * FROM fresh ORDER BY position",
    }
    with closing(sqlite3.connect(path)) as connection:
        return {name: connection.execute(question).fetchall() for name, question in asked.items()}


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5), st.just("a\0b")
)
EVENT = st.fixed_dictionaries(
    {}, optional={"run_id": VALUES, "outcome": VALUES, "execution_time": VALUES, "more": VALUES}
)
RECORDS = st.one_of(
    st.builds(Record, st.just(EVENTS), EVENT),
    st.builds(
        Record, st.sampled_from([f"run:{n}" for n in range(4)]), EVENT, st.sampled_from([None, "open", "closed"])
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(batches=st.lists(st.lists(st.lists(RECORDS, min_size=1, max_size=3), min_size=1, max_size=20), max_size=5))
def test_both_ways_write_the_same(tmp_path_factory: pytest.TempPathFactory, batches: list[list[list[Record]]]) -> None:
    folder = tmp_path_factory.mktemp("same")
    found, outcomes = [], []
    for many in (1, 10**9):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(sqlite_log, "_MANY", many)
            seen = at_once(monkeypatch)
            log = SqliteLog(folder / f"{many}.db", busy_timeout=5)
            log.commit([append(Record(EVENTS, {}), *(Record(f"run:{n}", {}) for n in range(4)))])
            outcomes.append([log.commit([append(*records) for records in batch]) for batch in batches])
            log.close()
            assert seen == [False] + [many == 1] * len(batches)
        found.append(contents(folder / f"{many}.db"))
    assert found[0] == found[1]
    assert outcomes[0] == outcomes[1]


def pages_written(log: SqliteLog, appends: list[Append]) -> set[int]:
    """The pages of the file that one transaction writes."""
    wal = log._path.with_name(f"{log._path.name}-wal")
    begin = wal.stat().st_size
    log.commit(appends)
    frame = 24 + log._open().execute("PRAGMA page_size").fetchone()[0]
    written = wal.read_bytes()[begin:]
    return {int.from_bytes(written[at : at + 4], "big") for at in range(0, len(written), frame)}


@pytest.mark.parametrize("many", [1, 10**9], ids=["at once", "in several statements"])
def test_the_index_over_states_is_written_only_when_a_state_changes(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(sqlite_log, "_MANY", many)
    log.commit([append(Record(EVENTS, {}), Record("run:0", {}, "open"), Record("run:1", {}))])
    root = log._open().execute("SELECT rootpage FROM sqlite_master WHERE name = 'streams_by_state'").fetchone()[0]
    assert root not in pages_written(log, [append(Record("run:0", {}), Record("run:1", {}), Record(EVENTS, {}))])
    assert root in pages_written(log, [append(Record("run:0", {}, "success"), Record("run:1", {}))])
    assert root in pages_written(log, [append(Record("run:2", {}), Record("run:1", {}))])
    states = [("events", 2, None), ("run:0", 3, "success"), ("run:1", 4, None), ("run:2", 1, None)]
    assert contents(log._path)["streams"] == states


def test_events_enter_the_indexes_wherever_in_a_statement_there_are_enough(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(log)
    seen = at_once(monkeypatch)
    for _ in range(3):
        log.commit([append(Record(EVENTS, {"n": n})) for n in range(300)])
    assert seen == [True] * 3
    with closing(sqlite3.connect(log._path)) as check:
        assert check.execute("SELECT count(*), max(position) FROM events").fetchone() == (768, 767)
        assert check.execute("SELECT count(*), min(position) FROM fresh").fetchone() == (133, 768)
        assert check.execute("SELECT count(*) FROM zones").fetchone() == (1,)


def test_what_another_process_wrote_meanwhile_is_noticed(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(log)
    other = SqliteLog(log._path, busy_timeout=5)
    other.commit([append(Record(EVENTS, {"other": True}), Record("run:1", {}), run_1=0)])
    other.close()
    seen = at_once(monkeypatch)
    outcomes = log.commit(
        [append(Record(EVENTS, {"n": n})) for n in range(MANY)] + [append(Record("run:1", {}), run_1=0)]
    )
    assert seen == [False]
    assert outcomes[:MANY] == [{EVENTS: n + 3} for n in range(MANY)]
    stale = outcomes[MANY]
    assert isinstance(stale, StalePositionError)
    assert stale.actual == 1
    log.commit([append(Record("run:1", {}), Record(EVENTS, {}), run_1=1)] + [append(Record(EVENTS, {}))] * MANY)
    assert seen == [False, True]
    assert [row[1] for row in contents(log._path)["streams"]] == [2 * MANY + 3, 1, 2]


def test_a_stream_that_another_process_has_dropped_begins_anew(log: SqliteLog) -> None:
    ready(log)
    other = SqliteLog(log._path, busy_timeout=5)
    other.drop("run:0")
    other.close()
    assert log.commit([append(Record("run:0", {"n": n})) for n in range(MANY)]) == [
        {"run:0": n + 1} for n in range(MANY)
    ]


def test_a_stream_that_is_only_expected_is_checked_and_not_made(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(log)
    seen = at_once(monkeypatch)
    batch = [append(Record("run:0", {"n": n}), run_0=n + 1, claims_0=0) for n in range(MANY)]
    assert log.commit(batch) == [{"run:0": n + 2} for n in range(MANY)]
    assert seen == [True]
    with closing(sqlite3.connect(log._path, isolation_level=None)) as claimer:
        claimer.execute("INSERT INTO streams VALUES (NULL, 'claims:0', 1, NULL, 0, 0)")
    later = [append(Record("run:0", {"n": n}), run_0=n + MANY + 1, claims_0=0) for n in range(MANY)]
    assert all(isinstance(outcome, StalePositionError) for outcome in log.commit(later))
    assert seen == [True, False]
    assert [row[:2] for row in contents(log._path)["streams"]] == [("claims:0", 1), (EVENTS, 1), ("run:0", MANY + 1)]


def test_one_that_is_stale_does_not_keep_the_others_out(log: SqliteLog) -> None:
    ready(log)
    outcomes = log.commit([append(Record(EVENTS, {})), append(Record("run:0", {}), run_0=0)] * MANY)
    assert [isinstance(outcome, StalePositionError) for outcome in outcomes] == [False, True] * MANY
    assert len(contents(log._path)["events"]) == MANY + 1


def test_more_than_a_statement_takes_is_written_in_several(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(log)
    seen = at_once(monkeypatch)
    log._open().setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    log.commit([append(Record(EVENTS, {"n": n})) for n in range(100)])
    log.commit([append(Record(EVENTS, {"n": n})) for n in range(30)])
    assert seen == [False, True]
    assert len(contents(log._path)["events"]) == 131


def test_few_statements_are_compiled_whatever_the_sizes(log: SqliteLog) -> None:
    ready(log)
    sqlite_batch._statement.cache_clear()
    for count in range(MANY, 200):
        log.commit([append(Record(EVENTS, {})) for _ in range(count)])
    assert sqlite_batch._statement.cache_info().currsize == 4  # for 32, 64, 128 and 256 rows


def test_the_stream_of_events_is_made_in_its_place_among_others(log: SqliteLog) -> None:
    ready(log)
    log.drop(EVENTS)
    log.commit(
        [append(Record("run:1", {})), append(Record(EVENTS, {}), events=0)]
        + [append(Record(f"run:{n}", {}), **{f"run_{n}": 0}) for n in range(2, MANY)]
    )
    with closing(sqlite3.connect(log._path)) as check:
        names = [name for (name,) in check.execute("SELECT name FROM streams ORDER BY number")]
    assert names[:4] == ["run:0", "run:1", EVENTS, "run:2"]


def test_many_appends_of_nothing_are_nothing(log: SqliteLog) -> None:
    ready(log)
    assert log.commit([append() for _ in range(MANY)]) == [{}] * MANY


def test_nothing_is_left_of_a_batch_of_which_one_was_stale(log: SqliteLog) -> None:
    ready(log)
    gc.collect()
    gc.disable()
    try:
        batch = [append(Record("run:0", {}), run_0=0), append(Record(EVENTS, {}))]
        outcomes = log.commit(batch)
        (outcome,) = [outcome for outcome in outcomes if isinstance(outcome, StalePositionError)]
        assert outcome.__traceback__ is None
        gone = weakref.ref(outcome)
        del outcome, outcomes
        assert gone() is None
    finally:
        gc.enable()


async def test_nothing_of_a_statement_that_fails_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 60")
        return connection

    monkeypatch.setattr(sqlite_log, "connect", small)
    outcomes: list[Any] = []

    async def write(storage: SqliteStorage, n: int) -> None:
        records = [Record(EVENTS, {"n": n, "long": "x" * 500}), Record(f"run:{n}", {})]
        try:
            outcomes.append(await storage.append(records, {f"run:{n}": 0}))
        except StorageError as error:
            outcomes.append(error)

    async with SqliteStorage(tmp_path / "log.db") as storage:
        await storage.append([Record(EVENTS, {}), Record("run:x", {})])
        seen = at_once(monkeypatch)
        for first in range(0, 400, 40):
            async with anyio.create_task_group() as group:
                for n in range(first, first + 40):
                    group.start_soon(write, storage, n)
        failed = [outcome for outcome in outcomes if isinstance(outcome, StorageError)]
        assert any(seen)  # some of them were one statement
        assert failed
        assert all("the disk is full" in str(error) for error in failed)
        written = await storage.read(EVENTS)
        assert len(written) == 1 + 400 - len(failed)
        assert [record.position for record in written] == list(range(len(written)))
        assert len(await storage.streams(prefix="run:")) == len(written)
