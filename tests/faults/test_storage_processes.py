"""Several processes, kill -9, full disks, folders one may not write: nothing acknowledged is lost, nothing is torn."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import tempfile
from pathlib import Path

import pytest

from agenthelm.core.storage import EVENTS, JsonStorage, Record, SqliteStorage
from agenthelm.exceptions import StorageError
from tests.support.storage_worlds import KINDS, finished, opened, start

WRITE_10_000 = """
async def main():
    async with storage:
        for start in range(0, 10_000, 50):
            async with anyio.create_task_group() as group:  # 10 appends in flight, as concurrent runs have them
                for first in range(start, start + 50, 5):
                    records = [Record("events", {"who": sys.argv[3], "n": n, "run_id": f"r{n % 7}"}) for n in range(first, first + 5)]
                    group.start_soon(storage.append, [*records, Record("run:" + sys.argv[3], {"n": first})])
anyio.run(main)
"""

ACKNOWLEDGE_UNTIL_KILLED = """
async def main():
    n = 0
    while True:
        await storage.append([Record("run:1", {"n": n}), Record("events", {"n": n, "padding": "x" * 5000})], {"run:1": n})
        print(n, flush=True)
        n += 1
anyio.run(main)
"""

DIE_ON_REQUEST = """
from agenthelm.testing.storage import FaultyStorage
async def main():
    faulty = FaultyStorage(storage, at=2, do="kill", moment=sys.argv[3])
    await faulty.append([Record("run:1", {"n": 1})])
    await faulty.append([Record("run:1", {"n": 2})])
anyio.run(main)
"""

FILL_THE_DISK = """
async def main():
    await storage.append([Record("run:1", {"n": 0}), Record("events", {"n": 0})])
    limit = 400_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    written = 1
    try:
        while True:
            await storage.append([Record("run:1", {"n": written}), Record("events", {"n": written, "padding": "x" * 5000})])
            written += 1
    except StorageError as exc:
        assert str(path) in str(exc) and "\\n" not in str(exc), exc
    outcomes = []
    async def attempt(size):
        try:
            outcomes.append(await storage.append([Record("run:2", {"padding": "x" * size})]))
        except StorageError as exc:
            outcomes.append(exc)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(attempt, 500_000)
    assert len(outcomes) == 3 and all(isinstance(outcome, StorageError) for outcome in outcomes), outcomes
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (await storage.append([Record("run:1", {"n": written})], {"run:1": written})) == {"run:1": written + 1}
    await storage.aclose()
    print(written + 1)
anyio.run(main)
"""

IN_A_LOCKED_FOLDER = """
async def main():
    # Everything is imported by then: nobody may not read where the interpreter lies.
    async with type(storage)(path.parent.parent / "warm") as warm:
        await warm.append([Record("events", {})])
        await warm.read("events")
    old = path.with_name("old")
    old.write_bytes((path.parent.parent / "warm").read_bytes())
    old.chmod(0o444)
    path.parent.chmod(0o555)
    if os.getuid() == 0:  # root may write anywhere
        os.setgid(65534), os.setuid(65534)
    try:
        await storage.append([Record("events", {"n": 0})])
    except StorageError as exc:
        print(exc)
    await storage.aclose()
    async with type(storage)(old) as log:
        try:
            print(len(await log.read("events")), "old event")
        except StorageError as exc:
            print(exc)
        try:
            await log.append([Record("events", {"n": 0})])
        except StorageError as exc:
            print(exc)
anyio.run(main)
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the processes matter here; the contract covers the backends


@pytest.mark.parametrize("kind", KINDS)
async def test_two_processes_write_10_000_events_each_and_none_is_lost_or_torn(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for process in [start(WRITE_10_000, kind, path, who) for who in "ab"]:
        finished(process)
    async with opened(kind, path) as storage:
        events = await storage.read(EVENTS)
        assert [event.position for event in events] == list(range(20_000))
        for who in "ab":
            assert sorted(event.data["n"] for event in events if event.data["who"] == who) == list(range(10_000))
            assert len(await storage.read(f"run:{who}")) == 2_000
        assert storage.skipped == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_everything_acknowledged_survives_kill_9(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    process = start(ACKNOWLEDGE_UNTIL_KILLED, kind, path)
    assert process.stdout is not None
    acknowledged = -1
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == 60:
            os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    async with opened(kind, path) as storage:
        journal = [record.data["n"] for record in await storage.read("run:1")]
        events = [record.data["n"] for record in await storage.read(EVENTS)]
        assert journal == events == list(range(len(journal)))
        assert len(journal) in (acknowledged + 1, acknowledged + 2)  # one may have been on its way
        assert await storage.append([Record("run:1", {"n": -1})], {"run:1": len(journal)})


@pytest.mark.parametrize(("moment", "kept"), [("before", 1), ("after", 2)])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_storage_that_kills_its_process_does_so_before_or_after_the_commit(
    kind: str, moment: str, kept: int, tmp_path: Path
) -> None:
    process = start(DIE_ON_REQUEST, kind, tmp_path / "log", moment)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    async with opened(kind, tmp_path / "log") as storage:
        assert len(await storage.read("run:1")) == kept


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_disk_fails_the_append_and_leaves_nothing_half_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    written = int(finished(start(FILL_THE_DISK, kind, path)))
    async with opened(kind, path) as storage:
        assert [record.data["n"] for record in await storage.read("run:1")] == list(range(written))
        assert [record.data["n"] for record in await storage.read(EVENTS)] == list(range(written - 1))
        assert await storage.read("run:2") == []
        assert storage.skipped == 0


async def test_a_full_sqlite_file_says_so(tmp_path: Path) -> None:
    async with SqliteStorage(tmp_path / "log.db") as storage:
        await storage.append([Record("a", {"n": 1})])
        connection = storage._log._open()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StorageError, match=r"can't write .*log\.db: the disk is full"):
            await storage.append([Record("a", {"n": "x" * 100_000})])
        assert len(await storage.read("a")) == 1
        assert await storage.append([Record("a", {"n": 2})]) == {"a": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_one_may_not_write_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "locked" / "log"
    path.parent.mkdir()
    for folder in [tmp_path, *tmp_path.parents]:  # pytest makes its folders for one user alone
        if folder.is_relative_to(Path(tempfile.gettempdir())) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    first, reading, writing = finished(start(IN_A_LOCKED_FOLDER, kind, path)).splitlines()
    old = path.with_name("old")
    assert first == f"can't {'create' if kind == 'sqlite' else 'write'} {path}: Permission denied"
    if kind == "sqlite":  # reading, too, writes beside the file
        assert reading == f"can't open {old}: it or its folder is read-only"
        assert writing == f"can't write {old}: it or its folder is read-only"
    else:
        assert reading == "1 old event"
        assert writing == f"can't write {old}: Permission denied"
    assert [file.name for file in path.parent.iterdir()] == ["old"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_in_the_place_of_the_folder_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with opened(kind, tmp_path / "file" / "log") as storage:
        with pytest.raises(StorageError, match="file/log"):
            await storage.append([Record("a", {"n": 1})])


async def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"this is no database" * 1000)
    async with SqliteStorage(path) as storage:
        for use in (storage.read(EVENTS), storage.append([Record("a", {"n": 1})]), storage.streams()):
            with pytest.raises(StorageError, match=r"log\.db: it is damaged, or no SQLite file"):
                await use
    assert path.read_bytes() == b"this is no database" * 1000


async def test_a_database_damaged_in_the_middle_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with SqliteStorage(path) as storage:
        await storage.append([Record("a", {"n": "x" * 500}) for _ in range(500)])
    blob = bytearray(path.read_bytes())
    blob[4096 * 4 :] = os.urandom(len(blob) - 4096 * 4)
    path.write_bytes(blob)
    async with SqliteStorage(path) as storage:
        with pytest.raises(StorageError, match=r"can't read .*log\.db: it is damaged"):
            await storage.read("a")


@pytest.mark.parametrize("kind", KINDS)
async def test_waits_for_another_process_that_writes_but_not_for_ever(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with opened(kind, path) as storage:
        await storage.append([Record("a", {"n": 1})])
    impatient = SqliteStorage(path, busy_timeout=0.05) if kind == "sqlite" else JsonStorage(path, lock_timeout=0.05)
    async with impatient as storage:
        if kind == "sqlite":
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            release = other.close
        else:
            import fcntl

            file = path.open()
            fcntl.flock(file, fcntl.LOCK_EX)
            release = file.close
        with pytest.raises(StorageError, match="another process has"):
            await storage.append([Record("a", {"n": 2})])
        release()
        assert await storage.append([Record("a", {"n": 3})], {"a": 1}) == {"a": 2}


async def test_a_json_append_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    real = os.pwrite

    def short(descriptor: int, block: bytes, offset: int) -> int:
        monkeypatch.setattr(os, "pwrite", broken)
        return real(descriptor, bytes(block)[:10], offset)

    def broken(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async with JsonStorage(path) as storage:
        await storage.append([Record("a", {"n": 1})])
        before = path.read_bytes()
        monkeypatch.setattr(os, "pwrite", short)
        with pytest.raises(StorageError, match=r"can't write .*log\.jsonl: No space left on device"):
            await storage.append([Record("a", {"n": 2})])
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert await storage.append([Record("a", {"n": 3})], {"a": 1}) == {"a": 2}
    assert [json.loads(line)["records"][0]["data"]["n"] for line in path.read_text().splitlines()[1:]] == [1, 3]
