"""Several processes, kill -9, full disks, folders one may not write: nothing acknowledged is lost, nothing is torn."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agenthelm.core.storage import EVENTS, JsonStorage, Record, SqliteStorage
from agenthelm.exceptions import StalePositionError, StorageError
from tests.support.storage_worlds import KINDS, finished, opened, start

WRITE_10_000 = """
async def main():
    async with storage:
        at_once = 5 * int(sys.argv[4])  # so many appends of 5 events are in flight, as concurrent runs have them
        for start in range(0, 10_000, at_once):
            async with anyio.create_task_group() as group:
                for first in range(start, start + at_once, 5):
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

ACKNOWLEDGE_MANY_UNTIL_KILLED = """
async def run(k):
    n = 0
    while True:
        await storage.append([Record(f"run:{k}", {"n": n}), Record("events", {"k": k, "n": n})], {f"run:{k}": n})
        print(k, n, flush=True)
        n += 1
async def main():
    async with anyio.create_task_group() as group:
        for k in range(64):
            group.start_soon(run, k)
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

FORK_AND_GO_ON = """
async def use(who, n):
    for _ in range(n):
        await storage.append([Record("run:" + who, {"who": who}), Record("events", {"who": who})])
    return len(await storage.read("run:" + who)), len(await storage.streams())
def still_locked():  # as it is while an append or a read is under way in another thread
    held = [storage._writer._guard, *([storage._log._guard] if kind == "json" else [])]
    return [lock.acquire() for lock in held]
anyio.run(use, "parent", 3)
still_locked()
child = os.fork()
if child == 0:
    print("child", *anyio.run(use, "child", 3), flush=True)
    if kind == "sqlite" and sys.platform == "linux":  # it has locks of its own: nobody takes the file for unused
        print(*(line.split()[4] for line in open("/proc/locks") if str(os.getpid()) in line.split()), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
storage._writer._guard.release()
if kind == "json":
    storage._log._guard.release()
print("parent", *anyio.run(use, "parent", 3), flush=True)
os._exit(0)
"""

FORK_AMID_WORK = """
import threading
going = threading.Event()
counts = {}
async def work(who, until):
    async def one(number):
        done = 0
        while not until(done):
            await storage.append([Record(f"run:{who}:{number}", {"n": done})], {f"run:{who}:{number}": done})
            assert len(await storage.read(f"run:{who}:{number}", limit=1)) == 1
            done += 1
            going.set()
        counts[number] = done
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(one, number)
thread = threading.Thread(target=anyio.run, args=(work, "parent", lambda done: over.is_set()))
over = threading.Event()
thread.start()
going.wait()
children = []
for fork in range(5):
    going.clear()
    if (child := os.fork()) == 0:
        anyio.run(work, f"child{fork}", lambda done: done == 5)
        os._exit(0)
    children.append(child)
    going.wait()  # the parent goes on, whatever it was doing
for child in children:
    assert os.waitpid(child, 0)[1] == 0
over.set()
thread.join()
print(sum(counts.values()), flush=True)
os._exit(0)
"""

FORK_UNDER_A_LOCK = """
import fcntl
storage = JsonStorage(path, lock_timeout=0.1)
anyio.run(storage.append, [Record(EVENTS, {"who": "parent"})])
descriptor = storage._log._descriptor
fcntl.flock(descriptor, fcntl.LOCK_EX)
if (child := os.fork()) == 0:
    try:
        anyio.run(storage.append, [Record(EVENTS, {"who": "child"})])
    except StorageError as error:
        print("child:", str(error).partition(": ")[2], flush=True)
    os._exit(0)
os.waitpid(child, 0)
fcntl.flock(descriptor, fcntl.LOCK_UN)
print("parent:", anyio.run(storage.append, [Record(EVENTS, {"who": "parent"})])[EVENTS])
"""

FORK_AMID_AN_APPEND_IN_MEMORY = """
import signal, threading
storage = InMemoryStorage()
inside, go_on = threading.Event(), threading.Event()
class Slowly(list):
    def __iter__(self):
        yield from super().__iter__()
        inside.set()
        go_on.wait()
thread = threading.Thread(target=anyio.run, args=(storage.append, Slowly([Record("run:1", {"n": 0}, "open")])))
thread.start()
inside.wait()
os.register_at_fork(before=go_on.set)
if (child := os.fork()) == 0:
    signal.alarm(120)  # for ever, if it waits for a thread that is not here
else:
    assert os.waitpid(child, 0)[1] == 0  # what both print is one line after the other
async def main():
    await storage.append([Record("run:1", {"n": 1}, "success")])
    print(*[record.data["n"] for record in await storage.read("run:1")], flush=True)
anyio.run(main)
os._exit(0)
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
    async with type(storage)(path.parent.parent / "warm") as warm:
        await warm.append([Record("events", {})])
    old = path.with_name("old")
    old.write_bytes((path.parent.parent / "warm").read_bytes())
    old.chmod(0o444)
    path.parent.chmod(0o555)
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


BEHIND_A_LINK = """
async def main():
    path.parent.chmod(0o555)
    async with SqliteStorage(path.parent.parent / "link") as log:
        try:
            print(len(await log.read("run:1")))
        except StorageError as exc:
            print(exc)
anyio.run(main)
"""


OF_AN_OLDER_VERSION = """
import sqlite3
from contextlib import closing
async def main():
    async with SqliteStorage(path) as made:
        await made.append([Record("run:1", {"n": 1})])
        await made.read("run:1")
    with closing(sqlite3.connect(path)) as older:
        older.execute("PRAGMA user_version = 2")
    path.chmod(0o444), path.parent.chmod(0o555)
    async with SqliteStorage(path) as log:
        try:
            print(len(await log.read("run:1")))
        except StorageError as exc:
            print(exc)
anyio.run(main)
"""


def killed_after(lines: int, process: subprocess.Popen[str]) -> list[str]:
    """The whole lines of a process that was ended with ``kill -9`` once it had printed so many."""
    assert process.stdout is not None
    assert process.stdin is not None
    printed = []
    for text in process.stdout:
        if not text.endswith("\n"):  # killed while it printed
            break
        printed.append(text)
        if len(printed) == lines:
            os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    return printed


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the processes matter here; the contract covers the backends


@pytest.mark.parametrize("at_once", ["10", "50"])
@pytest.mark.parametrize("kind", KINDS)
async def test_two_processes_write_10_000_events_each_and_none_is_lost_or_torn(
    kind: str, at_once: str, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    for process in [start(WRITE_10_000, kind, path, who, at_once) for who in "ab"]:
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
    acknowledged = int(killed_after(61, start(ACKNOWLEDGE_UNTIL_KILLED, kind, path))[-1])
    async with opened(kind, path) as storage:
        journal = [record.data["n"] for record in await storage.read("run:1")]
        events = [record.data["n"] for record in await storage.read(EVENTS)]
        assert journal == events == list(range(len(journal)))
        assert len(journal) in (acknowledged + 1, acknowledged + 2)  # one may have been on its way
        assert await storage.append([Record("run:1", {"n": -1})], {"run:1": len(journal)})


@pytest.mark.parametrize("kind", KINDS)
async def test_everything_acknowledged_to_many_survives_kill_9(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    acknowledged = dict.fromkeys(range(64), -1)
    for line in killed_after(2_001, start(ACKNOWLEDGE_MANY_UNTIL_KILLED, kind, path)):
        k, n = map(int, line.split())
        acknowledged[k] = n
    async with opened(kind, path) as storage:
        events = await storage.read(EVENTS)
        assert [event.position for event in events] == list(range(len(events)))
        for k, last in acknowledged.items():
            journal = [record.data["n"] for record in await storage.read(f"run:{k}")]
            assert journal == [e.data["n"] for e in events if e.data["k"] == k] == list(range(len(journal)))
            assert len(journal) in (last + 1, last + 2)  # one may have been on its way
        assert storage.skipped == 0


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
    first, reading, writing = finished(start(IN_A_LOCKED_FOLDER, kind, path)).splitlines()
    old = path.with_name("old")
    assert first == f"can't {'create' if kind == 'sqlite' else 'write'} {path}: Permission denied"
    assert reading == "1 old event"  # although SQLite's readers write beside the file where they may
    why = "it or its folder is read-only" if kind == "sqlite" else "Permission denied"
    assert writing == f"can't write {old}: {why}"
    assert [file.name for file in path.parent.iterdir()] == ["old"]


async def test_what_is_not_yet_in_the_database_itself_is_not_overlooked_behind_a_link(tmp_path: Path) -> None:
    path = tmp_path / "copied" / "log"
    path.parent.mkdir()
    async with SqliteStorage(tmp_path / "log") as storage:
        await storage.append([Record("run:1", {"n": 1})])
    async with SqliteStorage(tmp_path / "log") as storage:
        await storage.append([Record("run:1", {"n": 2})])  # and then a copy of the files in use
        for suffix in ("", "-wal"):
            copied = path.with_name(f"log{suffix}")
            copied.write_bytes((tmp_path / f"log{suffix}").read_bytes())
            copied.chmod(0o444)
    (tmp_path / "link").symlink_to(path)
    assert (
        finished(start(BEHIND_A_LINK, "sqlite", path)).strip() == f"can't open {tmp_path / 'link'}: it can't be opened"
    )


async def test_an_older_file_that_may_only_be_read_says_that_it_has_to_be_migrated_first(tmp_path: Path) -> None:
    path = tmp_path / "locked" / "log"
    path.parent.mkdir()
    said = finished(start(OF_AN_OLDER_VERSION, "sqlite", path)).strip()
    assert said == (
        f"can't read {path}: an older AgentHelm wrote it, and to migrate it takes leave to write: "
        "let somebody open it who may, or copy it"
    )


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


@pytest.mark.parametrize("kind", KINDS)
async def test_a_storage_that_was_used_before_a_fork_works_on_both_sides_of_it(kind: str, tmp_path: Path) -> None:
    child, *locks, parent = finished(start(FORK_AND_GO_ON, kind, tmp_path / "log")).splitlines()
    assert (child, parent) == ("child 3 3", "parent 6 3")
    assert len(locks) == (kind == "sqlite" and sys.platform == "linux")
    assert all(locks)
    async with opened(kind, tmp_path / "log") as storage:
        assert [event.data["who"] for event in await storage.read(EVENTS)] == ["parent"] * 3 + ["child"] * 3 + [
            "parent"
        ] * 3


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fork_amid_reads_and_commits_loses_nothing_on_either_side(kind: str, tmp_path: Path) -> None:
    written = int(finished(start(FORK_AMID_WORK, kind, tmp_path / "log")))
    async with opened(kind, tmp_path / "log") as storage:
        infos = await storage.streams()
        assert len(infos) == 4 + 5 * 4
        assert sum(info.position for info in infos if ":parent:" in info.name) == written
        assert {info.position for info in infos if ":child" in info.name} == {5}


def test_a_fork_does_not_write_under_a_lock_that_its_parent_holds(tmp_path: Path) -> None:
    out = finished(start(FORK_UNDER_A_LOCK, "json", tmp_path / "log.jsonl"))
    assert out.splitlines() == ["child: another process has held it for 0.1 s", "parent: 2"]


def test_a_fork_amid_an_append_in_memory_waits_for_nobody_in_the_child(tmp_path: Path) -> None:
    out = finished(start(FORK_AMID_AN_APPEND_IN_MEMORY, "memory", tmp_path / "log"))
    assert out.splitlines() == ["0 1", "0 1"]


@pytest.mark.parametrize("left", [[], ["log-wal", "log-shm"]], ids=["all", "the database alone"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_is_removed_while_it_is_used_is_made_anew(kind: str, left: list[str], tmp_path: Path) -> None:
    path = tmp_path / "new" / "log"
    async with opened(kind, path) as storage:
        await storage.append([Record("run:1", {"n": 1})])
        assert len(await storage.read("run:1")) == 1
        for file in path.parent.iterdir():
            if file.name not in left:
                file.unlink()
        assert await storage.read("run:1") == []
        assert await storage.streams() == []
        await storage.drop("run:1")
        assert not path.exists()  # nothing has been written yet
        with pytest.raises(StalePositionError):
            await storage.append([Record("run:1", {"n": 2})], {"run:1": 1})
        assert await storage.append([Record("run:2", {"n": 3})]) == {"run:2": 1}
        assert [info.name for info in await storage.streams()] == ["run:2"]
    async with opened(kind, path) as storage:
        assert [record.data for record in await storage.read("run:2")] == [{"n": 3}]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_is_put_in_the_place_of_another_is_used_from_then_on(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path / "copy") as storage:
        await storage.append([Record("run:1", {"n": n}) for n in range(3)])
    async with opened(kind, tmp_path / "log") as storage:
        await storage.append([Record("run:1", {"n": -1})])
        assert len(await storage.read("run:1")) == 1
        for end in ("-wal", "-shm"):  # they would be taken for the new one's
            (tmp_path / f"log{end}").unlink(missing_ok=True)
        (tmp_path / "copy").replace(tmp_path / "log")
        with pytest.raises(StalePositionError):
            await storage.append([Record("run:1", {"n": -2})], {"run:1": 1})
        assert await storage.append([Record("run:1", {"n": 3})], {"run:1": 3}) == {"run:1": 4}
        assert [record.data["n"] for record in await storage.read("run:1")] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_name_that_the_system_takes_for_none_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path / ("x" * 300)) as storage:
        for use in (storage.append([Record("a", {})]), storage.read("a"), storage.streams(), storage.drop("a")):
            with pytest.raises(StorageError, match=r"x: File name too long$"):
                await use


@pytest.mark.parametrize("kind", KINDS)
async def test_any_file_name_will_do(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path / "a?b=c#d%41 é&mode=ro") as storage:
        await storage.append([Record("a", {})])
        assert len(await storage.read("a")) == 1
    assert (tmp_path / "a?b=c#d%41 é&mode=ro").exists()
