"""The JSON Lines file: what a line looks like, and what happens to lines that nobody can read."""

# ruff: noqa: ASYNC240 - a small file may be read on the spot

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agenthelm.core.storage import EVENTS, JsonStorage, Record, file_lock, json_log
from agenthelm.core.storage.json_index import Index
from agenthelm.core.storage.json_lines import HEADER
from agenthelm.exceptions import ConfigError, CorruptRecordError, StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "log.jsonl"


async def fill(path: Path) -> list[bytes]:
    """Four appends: two runs in turn, each with an event; returns the lines, the header first."""
    async with JsonStorage(path) as storage:
        for n in range(4):
            await storage.append([Record(f"run:{n % 2}", {"n": n}, "open"), Record(EVENTS, {"n": n})])
    return path.read_bytes().splitlines(keepends=True)


async def read(path: Path, stream: str) -> list[int]:
    async with JsonStorage(path) as storage:
        return [record.data["n"] for record in await storage.read(stream)]


async def test_an_append_is_one_line_of_plain_json(path: Path) -> None:
    lines = await fill(path)
    assert len(lines) == 5
    line = json.loads(lines[2])
    assert line["records"] == [
        {"stream": "run:1", "position": 0, "state": "open", "data": {"n": 1}},
        {"stream": EVENTS, "position": 1, "data": {"n": 1}},
    ]
    assert line["before"] == {"run:0": 1, EVENTS: 1}


async def test_only_the_owner_may_read_the_file_and_its_folder(path: Path) -> None:
    await fill(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("known", [True, False])
async def test_where_a_flush_stops_in_the_drives_cache_the_drive_is_told_as_well(
    path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """As on macOS; some file systems there don't know it, and are flushed as elsewhere."""
    told: list[int] = []
    flushed: list[int] = []

    def tell(descriptor: int, command: int) -> None:
        told.append(command)
        if not known:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", tell)
    monkeypatch.setattr(os, "fsync", flushed.append)
    async with JsonStorage(path) as storage:
        await storage.append([Record("a", {})])
    assert told == [51, 51]  # the folder, which has a new name in it, and the line
    assert len(flushed) == (0 if known else 2)


def test_without_file_locks_it_says_so_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(file_lock, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="use SqliteStorage"):
        JsonStorage(path)


async def test_a_torn_last_line_is_skipped_counted_and_repaired_by_the_next_append(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join(lines)[:-20])
    async with JsonStorage(path) as storage:
        assert [event.data["n"] for event in await storage.read(EVENTS)] == [0, 1, 2]
        assert [record.data["n"] for record in await storage.read("run:1")] == [1]
        assert storage.skipped == 1
        assert await storage.append([Record("run:1", {"n": 9}), Record(EVENTS, {"n": 9})], {"run:1": 1}) is not None
        assert storage.skipped == 1
    assert await read(path, EVENTS) == [0, 1, 2, 9]
    assert await read(path, "run:1") == [1, 9]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


async def test_reading_changes_nothing_in_the_file(path: Path) -> None:
    torn = b"".join(await fill(path))[:-20]
    path.write_bytes(torn)
    assert await read(path, EVENTS) == [0, 1, 2]
    assert path.read_bytes() == torn


async def test_a_torn_line_that_is_longer_than_the_next_one_is_gone_whole(path: Path) -> None:
    whole = b"".join(await fill(path))
    path.write_bytes(whole + b'{"at":1.0,"before":{},"records":[' + b" " * 5_000)
    async with JsonStorage(path) as storage:
        await storage.append([Record(EVENTS, {"n": 4})])
    assert path.read_bytes().startswith(whole)
    (line,) = path.read_bytes().removeprefix(whole).splitlines()
    assert json.loads(line)["records"] == [{"stream": EVENTS, "position": 4, "data": {"n": 4}}]


async def test_a_torn_line_that_another_process_repaired_is_not_missed(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join(lines) + b'{"at":1.0,"before":{},"records":[' + b" " * 500)
    async with JsonStorage(path) as storage, JsonStorage(path) as other:
        assert len(await storage.read(EVENTS)) == 4
        await other.append([Record(EVENTS, {"n": 4})])
        assert [event.data["n"] for event in await storage.read(EVENTS)] == [0, 1, 2, 3, 4]


async def test_a_whole_last_line_without_its_line_break_counts(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join(lines)[:-1])
    assert await read(path, EVENTS) == [0, 1, 2, 3]
    async with JsonStorage(path) as storage:
        await storage.append([Record(EVENTS, {"n": 4})])
        assert storage.skipped == 0
    assert await read(path, EVENTS) == [0, 1, 2, 3, 4]


async def test_a_header_torn_at_the_very_first_append_is_an_empty_log(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(lines[0][:12])
    async with JsonStorage(path) as storage:
        assert await storage.streams() == []
        await storage.append([Record(EVENTS, {"n": 1})])
    assert await read(path, EVENTS) == [1]


@pytest.mark.parametrize("damage", [b"garbage\n", b"\x00" * 40 + b"\n", b"[1, 2]\n", b'{"records": 3}\n', b"\n"])
async def test_a_damaged_line_is_counted_for_events_and_refuses_the_journal_it_belonged_to(
    path: Path, damage: bytes
) -> None:
    lines = await fill(path)
    lines[2] = damage  # the first record of run:1
    path.write_bytes(b"".join(lines))
    async with JsonStorage(path) as storage:
        assert [event.data["n"] for event in await storage.read(EVENTS)] == [0, 2, 3]
        assert storage.skipped == 1
        assert [record.data["n"] for record in await storage.read("run:0")] == [0, 2]
        with pytest.raises(CorruptRecordError, match="record 0 of stream 'run:1'") as caught:
            await storage.read("run:1")
        assert (caught.value.stream, caught.value.position) == ("run:1", 0)
        await storage.append([Record("run:1", {"n": 4})], {"run:1": 2})
        with pytest.raises(CorruptRecordError):
            await storage.read("run:1")


async def test_a_damaged_line_that_ended_a_journal_refuses_it_too(path: Path) -> None:
    lines = await fill(path)
    lines[3] = b"garbage\n"  # the last record of run:0
    path.write_bytes(b"".join(lines))
    async with JsonStorage(path) as storage:
        assert [record.data["n"] for record in await storage.read("run:1")] == [1, 3]
        with pytest.raises(CorruptRecordError, match="record 1 of stream 'run:0'"):
            await storage.read("run:0")


async def test_after_several_damaged_lines_a_journal_that_goes_on_unharmed_can_be_read(path: Path) -> None:
    async with JsonStorage(path) as storage:
        for stream, n in [("run:a", 0), ("run:b", 0), ("run:c", 0), ("run:c", 1), ("run:a", 1)]:
            await storage.append([Record(stream, {"n": n})])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3:5] = [b"garbage\n", b"more\n"]  # nobody can say that these were not of run:b
    path.write_bytes(b"".join(lines))
    assert await read(path, "run:a") == [0, 1]
    for stream in ("run:b", "run:c"):
        with pytest.raises(CorruptRecordError):
            await read(path, stream)


@pytest.mark.parametrize(
    "damage",
    [
        lambda first, second: b"\x00" * len(first) + second,  # as a block that never reached the disk
        lambda first, second: first[:-9] + b"\x00" * 20 + second[11:],
        lambda first, second: first[:-1] + b"\x0b" + second,
    ],
    ids=["one and its line break", "over the line break", "the line break"],
)
async def test_damage_that_takes_a_line_break_hides_the_end_of_no_journal(path: Path, damage: Any) -> None:
    await fill(path)
    async with JsonStorage(path) as storage:
        for stream in ("run:c", "run:d", "run:e"):
            await storage.append([Record(stream, {"n": 9})])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4:6] = [damage(lines[4], lines[5])]  # the last records of run:1 and of run:c
    path.write_bytes(b"".join(lines))
    async with JsonStorage(path) as storage:
        for stream in ("run:1", "run:c"):
            with pytest.raises(CorruptRecordError, match=stream):
                await storage.read(stream)
        assert len(await storage.read("run:e")) == 1
        assert storage.skipped == 1


async def test_a_line_that_is_gone_is_missed_in_the_journal_it_ended(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))  # without the last record of run:0
    assert await read(path, "run:1") == [1, 3]
    with pytest.raises(CorruptRecordError, match="record 1 of stream 'run:0'"):
        await read(path, "run:0")


async def test_a_journal_that_goes_on_after_lines_that_are_gone_is_refused(path: Path) -> None:
    async with JsonStorage(path) as storage:
        for n, stream in enumerate(["run:a", "run:a", "run:b", "run:a"]):
            await storage.append([Record(stream, {"n": n})])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[4]]))
    async with JsonStorage(path) as storage:
        assert [info.position for info in await storage.streams(prefix="run:a")] == [3]
        with pytest.raises(CorruptRecordError, match="record 1 of stream 'run:a'"):
            await storage.read("run:a")


async def test_a_record_that_says_another_stream_now_is_missed_in_its_own(path: Path) -> None:
    lines = await fill(path)
    lines[3] = lines[3].replace(b'"run:0"', b'"run:8"')
    path.write_bytes(b"".join(lines))
    for stream in ("run:0", "run:8"):
        with pytest.raises(CorruptRecordError, match=stream):
            await read(path, stream)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "my-app"}\n', "is no AgentHelm log"),
        (b"hello\n", "is no AgentHelm log"),
        (b"not even a line", "is no AgentHelm log"),
        (b'{"format":"agenthelm-log","version":9}\n', "newer AgentHelm"),
    ],
)
async def test_a_file_that_is_no_log_of_ours_is_refused_and_not_touched(
    path: Path, content: bytes, message: str
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    async with JsonStorage(path) as storage:
        with pytest.raises(StorageError, match=message):
            await storage.append([Record(EVENTS, {"n": 1})])
        with pytest.raises(StorageError, match=message):
            await storage.read(EVENTS)
    assert path.read_bytes() == content


async def test_appending_costs_the_same_however_long_the_file_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with JsonStorage(path) as storage:
        await storage.append([Record(EVENTS, {"n": n, "padding": "x" * 100}) for n in range(5_000)])
        size = path.stat().st_size
        read_back = written = 0
        pread, pwrite = os.pread, os.pwrite

        def counted_read(descriptor: int, length: int, offset: int) -> bytes:
            nonlocal read_back
            block = pread(descriptor, length, offset)
            read_back += len(block)
            return block

        def counted_write(descriptor: int, block: bytes, offset: int) -> int:
            nonlocal written
            written += len(block)
            return pwrite(descriptor, block, offset)

        monkeypatch.setattr(os, "pread", counted_read)
        monkeypatch.setattr(os, "pwrite", counted_write)
        for n in range(10):
            await storage.append([Record(EVENTS, {"n": n})])
        assert read_back == 0
        assert written == path.stat().st_size - size < 2_000


async def test_the_file_shrinks_once_most_of_it_was_dropped_and_other_openers_notice(path: Path) -> None:
    async with JsonStorage(path) as storage, JsonStorage(path) as other:
        for n in range(20):
            await storage.append([Record(f"run:{n}", {"n": "x" * 100_000}), Record(EVENTS, {"n": n})])
        assert len(await other.read(EVENTS)) == 20
        for n in range(19):
            await storage.drop(f"run:{n}")
        await storage.drop(EVENTS)
        assert path.stat().st_size < 300_000
        assert await other.read(EVENTS) == []
        assert [info.name for info in await other.streams()] == ["run:19"]
        await other.append([Record("run:19", {"n": 1})], {"run:19": 1})
        assert [len(str(record.data["n"])) for record in await storage.read("run:19")] == [100_000, 1]
    assert len(await read(path, "run:19")) == 2
    assert list(path.parent.iterdir()) == [path]


async def drop_most_of_it(path: Path) -> None:
    async with JsonStorage(path) as storage:
        await storage.append([Record("run:1", {"n": "x" * 2_000_000}), Record("run:1", {"n": 1})])
        await storage.append([Record("run:2", {"n": 2})])
        await storage.drop("run:1")
        assert await storage.read("run:1") == []
        assert await storage.append([Record("run:2", {"n": 3})], {"run:2": 1}) == {"run:2": 2}
        await storage.append([Record("run:3", {}), Record("run:3", {})])
        await storage.drop("run:3")


async def test_a_log_that_lacks_a_line_does_not_shrink_and_forget_that(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))  # without the last record of run:0
    async with JsonStorage(path) as storage:
        await storage.append([Record("run:9", {"n": "x" * 100_000}) for _ in range(20)])
        await storage.drop("run:9")
    with pytest.raises(CorruptRecordError, match="record 1 of stream 'run:0'"):
        await read(path, "run:0")


async def test_after_it_has_shrunk_a_line_that_is_gone_is_missed_as_before(path: Path) -> None:
    async with JsonStorage(path) as storage:
        await storage.append([Record("run:9", {"n": "x" * 1_000_000}) for _ in range(5)])
        for stream in ("run:1", "run:2", "run:1"):
            await storage.append([Record(stream, {"n": 1})])
        await storage.drop("run:9")
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert await read(path, "run:1") == [1, 1]
    with pytest.raises(CorruptRecordError, match="record 0 of stream 'run:2'"):
        await read(path, "run:2")


async def test_a_shorter_file_is_on_the_disk_before_it_takes_the_place_of_the_longer_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[object] = []
    sync, sync_folder, replace = json_log.sync, json_log.sync_folder, Path.replace

    def synced(descriptor: int) -> None:
        did.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    def folder_synced(folder: Path) -> None:
        did.append(folder)
        sync_folder(folder)

    def replaced(new: Path, old: Path) -> Path:
        did.append(("replaced by", new.stat().st_size))
        return replace(new, old)

    monkeypatch.setattr(json_log, "sync", synced)
    monkeypatch.setattr(json_log, "sync_folder", folder_synced)
    monkeypatch.setattr(Path, "replace", replaced)
    await drop_most_of_it(path)
    (at,) = [n for n, what in enumerate(did) if isinstance(what, tuple)]
    assert did[at] == ("replaced by", did[at - 1])
    assert did[at + 1] == path.parent


@pytest.mark.parametrize("link", [os.symlink, os.link])
async def test_a_file_of_two_names_stays_one_when_it_is_to_shrink(path: Path, link: Any) -> None:
    path.parent.mkdir()
    path.touch()
    other = path.parent.parent / "other"
    link(path, other)
    async with JsonStorage(path) as storage:
        assert await storage.read("run:2") == []
        await drop_most_of_it(other)
        assert [record.data["n"] for record in await storage.read("run:2")] == [2, 3]
    assert await read(other, "run:2") == [2, 3]
    assert other.is_symlink() == (link is os.symlink)
    assert (path.stat().st_size < 1_000) == (link is os.symlink)
    assert list(path.parent.iterdir()) == [path]


async def test_what_is_dropped_is_gone_also_where_the_file_can_not_shrink(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:  # as for a file that is mounted into a container
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    await drop_most_of_it(path)
    assert await read(path, "run:1") == []
    assert await read(path, "run:2") == [2, 3]
    assert list(path.parent.iterdir()) == [path]


async def test_a_file_that_shrinks_stays_its_owners_and_nothing_is_left_beside_it(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    owner = 65534 if os.getuid() == 0 else os.getuid()  # only root may give it away
    os.chown(path, owner, -1)
    path.chmod(0o640)
    path.with_name(f"{path.name}.compacting").write_text("what a process that was killed has left")
    await drop_most_of_it(path)
    status = path.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner, 0o640)
    assert status.st_size < 1_000
    assert list(path.parent.iterdir()) == [path]


async def test_a_line_damaged_after_it_was_indexed_is_not_taken_for_an_empty_one(path: Path) -> None:
    async with JsonStorage(path) as storage:
        await storage.append([Record("run:1", {"n": 1}), Record(EVENTS, {"n": 1})])
        blob = bytearray(path.read_bytes())
        blob[-30:-1] = b"x" * 29
        path.write_bytes(blob)
        with pytest.raises(CorruptRecordError):
            await storage.read("run:1")
        assert await storage.read(EVENTS) == []


async def test_a_log_that_was_deleted_or_cut_while_open_is_read_anew(path: Path) -> None:
    async with JsonStorage(path) as storage:
        await storage.append([Record(EVENTS, {"n": n}) for n in range(3)])
        await storage.append([Record(EVENTS, {"n": 3})])
        lines = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, len(lines[0]) + len(lines[1]))
        assert len(await storage.read(EVENTS)) == 3
        assert await storage.append([Record(EVENTS, {"n": 4})], {EVENTS: 3}) == {EVENTS: 4}
        assert len(path.read_bytes().splitlines()) == 3
        path.unlink()
        assert await storage.read(EVENTS) == []
        assert await storage.append([Record(EVENTS, {"n": 9})]) == {EVENTS: 1}
        assert len(await storage.read(EVENTS)) == 1


@pytest.mark.parametrize(
    "record",
    [
        {"stream": "run:1", "position": -1, "data": {}},
        {"stream": "run:1", "position": 10**15, "data": {}},
        {"stream": 7, "position": 0, "data": {}},
        {"stream": "run:1", "position": 0, "data": "text"},
        {"stream": "run:1", "position": 0},
    ],
)
async def test_a_line_that_is_json_but_no_record_is_damage(path: Path, record: dict[str, object]) -> None:
    lines = await fill(path)
    lines.insert(3, json.dumps({"at": 1.0, "before": {}, "records": [record]}).encode() + b"\n")
    path.write_bytes(b"".join(lines))
    async with JsonStorage(path) as storage:
        assert len(await storage.read(EVENTS)) == 4
        assert [entry.data["n"] for entry in await storage.read("run:1")] == [1, 3]
        assert storage.skipped == 1


async def test_a_line_without_a_time_is_damage(path: Path) -> None:
    lines = await fill(path)
    lines[2] = lines[2].replace(b'{"at":', b'{"at":"')
    lines[2] = lines[2].replace(b',"before"', b'","before"', 1)
    assert isinstance(json.loads(lines[2])["at"], str)
    path.write_bytes(b"".join(lines))
    async with JsonStorage(path) as storage:
        assert [event.data["n"] for event in await storage.read(EVENTS)] == [0, 2, 3]
        assert all(isinstance(info.updated_at, float) for info in await storage.streams())


@pytest.mark.parametrize(
    "line",
    [
        b'{"at":1.0,"before":[],"records":[]}',
        b'{"at":1.0,"before":{}}',
        b'{"at":1.0,"before":{},"records":[7]}',
        b"[]",
        b"7",
        b"[" * 100_000,
    ],
    ids=["before", "records", "record", "list", "number", "deep"],
)
async def test_what_is_no_line_is_damage(path: Path, line: bytes) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:]]))
    assert await read(path, EVENTS) == [0, 1, 2, 3]


async def test_a_line_that_is_there_twice_counts_once(path: Path) -> None:
    lines = await fill(path)
    path.write_bytes(b"".join([*lines, lines[-1]]))
    assert await read(path, EVENTS) == [0, 1, 2, 3]
    async with JsonStorage(path) as storage:
        assert await storage.append([Record("run:1", {"n": 4})], {"run:1": 2}) == {"run:1": 3}
    assert await read(path, "run:1") == [1, 3, 4]


async def test_what_others_have_written_is_dropped_by_whoever_has_read_nothing_yet(path: Path) -> None:
    await fill(path)
    async with JsonStorage(path) as storage:
        await storage.drop("run:0")
    assert await read(path, "run:0") == []
    assert await read(path, "run:1") == [1, 3]


async def test_reading_leaves_no_file_open(path: Path) -> None:
    await fill(path)
    async with JsonStorage(path) as storage:
        await storage.read(EVENTS)
        opened = len(list(Path("/dev/fd").iterdir()))
        for _ in range(20):
            await storage.read(EVENTS)
            await storage.read("run:none")
        assert len(list(Path("/dev/fd").iterdir())) < opened + 20


async def test_a_log_that_may_only_be_read_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(path)
    really = os.open

    def refuse_writing(name: str | Path, flags: int, *args: int, **options: int) -> int:
        # As for another user than root, for whom the file's mode alone would do.
        if Path(name) == path and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(name, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse_writing)
    assert await read(path, "run:0") == [0, 2]
    async with JsonStorage(path) as storage:
        with pytest.raises(StorageError, match=r"can't write .*: Permission denied"):
            await storage.append([Record("run:0", {"n": 9})])
        assert len(await storage.read("run:0")) == 2
    monkeypatch.undo()
    assert await read(path, "run:0") == [0, 2]


def test_a_long_line_is_not_copied_again_for_each_block_that_it_goes_on_in() -> None:
    """A single large argument or result would make every opening of the log take minutes."""
    copied = 0

    class Block(bytes):
        def __radd__(self, before: bytes) -> bytes:
            nonlocal copied
            copied += len(before)
            return before + bytes(self)

    line = json.dumps(
        {"at": 1.0, "before": {}, "records": [{"stream": "s", "position": 0, "data": {"x": "x" * 99_000}}]}
    )
    whole = HEADER + line.encode() + b"\n" + line.replace('"position": 0', '"position": 1').encode() + b"\n"
    index = Index(Path("log.jsonl"))
    index.feed(Block(whole[start : start + 100]) for start in range(0, len(whole), 100))
    assert len(index.streams["s"].offsets) == 2
    assert copied < len(whole)
