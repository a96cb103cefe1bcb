"""Files that are locked, damaged, full or read-only, and processes that share them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import pytest

from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory import MemoryHub, SemanticMemory, ShortTermMemory
from agenthelm.memory.backends.sqlite import SqliteBackend
from tests.support.chroma_server import ChromaServer
from tests.support.permissions import obeying

ROOT = Path(__file__).parents[2]


def child(code: str, *args: object) -> subprocess.Popen[str]:
    """Python in another process."""
    return subprocess.Popen(
        obeying([sys.executable, "-c", textwrap.dedent(code), *map(str, args)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def said(process: subprocess.Popen[str]) -> str:
    """What a process printed, once it has ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


COUNT = """
    import sys, anyio
    from agenthelm.memory import ShortTermMemory
    async def main():
        async with ShortTermMemory(sys.argv[1]) as memory:
            await memory.ping()
            print("ready", flush=True)
            sys.stdin.readline()
            for n in range(300):
                await memory.incr("calls")
                await memory.write(f"{sys.argv[2]}:{n}", n, ttl=None)
    anyio.run(main)
"""


def test_several_processes_share_one_file_and_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"
    processes = [child(COUNT, url, n) for n in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said(process)

    async def look() -> None:
        async with ShortTermMemory(url) as memory:
            assert await memory.read("calls") == 900
            assert len(await memory.list_keys()) == 901

    anyio.run(look)


FORK_AMID_WORK = """
    import os, sys, threading, anyio
    from agenthelm.memory import ShortTermMemory
    memory, at_work, over = ShortTermMemory(sys.argv[1]), threading.Event(), threading.Event()
    counted = 0
    async def count(until):
        global counted
        counted = 0
        while not until():
            await memory.incr("calls")
            counted += 1
            at_work.set()
    thread = threading.Thread(target=anyio.run, args=(count, over.is_set))
    thread.start()
    children = []
    for _ in range(5):
        at_work.clear()
        at_work.wait()
        if (child := os.fork()) == 0:
            if sys.platform == "linux":  # what it opens is its own, and with it the locks on it
                links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
                assert not any("memory.db" in os.readlink(link) for link in links if os.path.lexists(link))
            anyio.run(count, lambda: counted == 5)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    over.set()
    thread.join()
    print(counted + 5 * 5, anyio.run(memory.read, "calls"), flush=True)
    anyio.run(memory.aclose)
"""


def test_a_fork_amid_work_loses_nothing_on_either_side(tmp_path: Path) -> None:
    counted, kept = said(child(FORK_AMID_WORK, f"sqlite:///{tmp_path}/memory.db")).split()
    assert counted == kept


def test_a_killed_process_leaves_what_it_wrote_and_no_lock(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"
    process = child(
        """
        import sys, anyio
        from agenthelm.memory import ShortTermMemory
        async def main():
            async with ShortTermMemory(sys.argv[1]) as memory:
                await memory.write("k", 1)
                backend = memory.backend
                await backend._run(lambda connection: connection.execute("BEGIN IMMEDIATE"))
                print("holding", flush=True)
                sys.stdin.read()
        anyio.run(main)
        """,
        url,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "holding"
    process.kill()
    process.communicate()

    async def look() -> None:
        async with ShortTermMemory(url) as memory:
            assert await memory.read("k") == 1
            await memory.write("k", 2)

    anyio.run(look)


async def test_a_locked_file_is_one_error_and_never_blocks_the_loop(tmp_path: Path) -> None:
    async with SqliteBackend(tmp_path / "memory.db", busy=0.3) as backend:
        await backend.write({"k": "1"}, None)
        other = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.01)
                ticks += 1

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            with pytest.raises(MemoryStoreError, match=r"another process has been writing for 0\.3 s"):
                await backend.write({"k": "2"}, None)
            group.cancel_scope.cancel()
        assert ticks
        assert await backend.read(["k"]) == ["1"]
        other.execute("ROLLBACK")
        other.close()
        assert await backend.incr("k", 1, ttl=None) == 2


async def test_a_damaged_file_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(b"this is no database" * 500)
    async with ShortTermMemory(f"sqlite:///{tmp_path}/memory.db") as memory:
        with pytest.raises(MemoryStoreError, match="damaged; restore it"):
            await memory.read("k")
    (tmp_path / "memory.db").unlink()
    async with ShortTermMemory(f"sqlite:///{tmp_path}/memory.db") as memory:
        await memory.write("k", 1)


@pytest.mark.parametrize("place", ["file/memory.db", ""])
async def test_a_place_that_is_no_file_is_one_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    async with ShortTermMemory(f"sqlite:///{tmp_path / place}") as memory:
        with pytest.raises(MemoryStoreError, match="folder exists"):
            await memory.write("k", 1)


async def test_a_second_memory_in_one_process_keeps_the_first_ones_locks(tmp_path: Path) -> None:
    """Or another process takes the file for unused, and removes the log that the first one still writes to."""
    url = f"sqlite:///{tmp_path}/memory.db"
    look = """
        import sys, anyio
        from agenthelm.memory import ShortTermMemory
        async def main():
            async with ShortTermMemory(sys.argv[1]) as memory:
                print(await memory.read("k"))
        anyio.run(main)
        """
    async with ShortTermMemory(url) as first, ShortTermMemory(url) as second:
        await first.write("k", 1)
        assert await second.read("k") == 1
        for value in (1, 2):
            await first.write("k", value)
            assert await anyio.to_thread.run_sync(lambda: said(child(look, url))) == str(value)


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_was_removed_or_replaced_gives_way_to_the_one_there_is(
    tmp_path: Path, replaced: bool
) -> None:
    """Or what is written is in a file that nobody can open again."""
    url = f"sqlite:///{tmp_path}/memory.db"
    async with ShortTermMemory(f"sqlite:///{tmp_path}/other.db") as other:
        await other.write("k", "new")
    async with ShortTermMemory(url) as memory:
        await memory.write("k", "old")
        if replaced:
            (tmp_path / "other.db").replace(tmp_path / "memory.db")
            for beside in ("memory.db-wal", "memory.db-shm"):
                (tmp_path / beside).unlink()
        else:
            (tmp_path / "memory.db").unlink()
        assert await memory.read("k") == ("new" if replaced else None)
        await memory.write("later", 1)
        async with ShortTermMemory(url) as second:
            assert await second.read("later") == 1


async def test_a_file_behind_a_link_to_nothing_is_made_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "memory.db")
    async with ShortTermMemory(f"sqlite:///{tmp_path}/link.db") as memory:
        await memory.write("k", 1)
    assert (tmp_path / "memory.db").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_one_error_and_what_was_there_stays(tmp_path: Path) -> None:
    process = child(
        """
        import resource, signal, sys, anyio
        from agenthelm.exceptions import MemoryStoreError
        from agenthelm.memory import ShortTermMemory
        async def main():
            async with ShortTermMemory(sys.argv[1]) as memory:
                await memory.write("k", "small")
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
                try:
                    await memory.write_many({"big": "x" * 1_000_000, "k": "changed"})
                except MemoryStoreError as error:
                    print(error)
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                print(await memory.read_many(["k", "big"]))
                await memory.write("k", "again")
                print(await memory.read("k"))
        anyio.run(main)
        """,
        f"sqlite:///{tmp_path}/memory.db",
    )
    error, held, after = said(process).splitlines()
    assert f"the memory at sqlite:///{tmp_path}/memory.db failed" in error
    assert "nothing was written" in error
    assert (held, after) == ("{'k': 'small'}", "again")


def test_a_read_only_folder_is_one_error_for_each_store(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    process = child(
        """
        import sys, anyio
        from agenthelm.exceptions import MemoryStoreError
        from agenthelm.memory import MemoryHub
        folder = sys.argv[1]
        async def main():
            async with MemoryHub(f"sqlite:///{folder}/memory.db", f"{folder}/vectors", embedder="lexical") as hub:
                context = hub.create_context("s")
                for operation in (context.write("k", 1), context.remember("text")):
                    try:
                        await operation
                    except MemoryStoreError as error:
                        print(error)
        anyio.run(main)
        """,
        folder,
    )
    values, texts = said(process).splitlines()
    assert "memory.db failed" in values
    assert "can be written" in values
    assert "Chroma can't open the folder" in texts
    assert "can be written" in texts
    assert list(folder.iterdir()) == []


async def _filled(folder: Path) -> None:
    async with SemanticMemory(str(folder), embedder="lexical") as memory:
        await memory.add_many([f"note {n} about trains" for n in range(1200)])  # enough that an index is written


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # each case costs a folder; the code below the loop is one
async def test_a_damaged_folder_of_chroma_is_one_error(tmp_path: Path) -> None:
    await _filled(tmp_path / "good")
    (header,) = (tmp_path / "good").glob("*/header.bin")
    damages = {
        "database": lambda folder: (folder / "chroma.sqlite3").write_bytes(b"garbage" * 1000),
        "header": lambda folder: (folder / header.relative_to(tmp_path / "good")).write_bytes(b"garbage"),
        "missing vectors": lambda folder: next(iter(folder.glob("*/data_level0.bin"))).unlink(),
    }
    for name, damage in damages.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        damage(folder)
        async with SemanticMemory(str(folder), embedder="lexical") as memory:
            with pytest.raises(MemoryStoreError, match="Chroma"):
                await memory.search("trains")
    # Put right, the folder can be used again, by the process that failed too.
    (tmp_path / "database" / "chroma.sqlite3").unlink()
    shutil.copy(tmp_path / "good" / "chroma.sqlite3", tmp_path / "database")
    async with SemanticMemory(str(tmp_path / "database"), embedder="lexical") as memory:
        assert len(await memory.search("trains")) == 5
    async with SemanticMemory(str(tmp_path / "good"), embedder="lexical") as memory:
        assert len(await memory.search("trains")) == 5


CHROMA_CHILD = """
    import sys, anyio
    from agenthelm.memory import SemanticMemory
    async def main():
        async with SemanticMemory(sys.argv[1], embedder="lexical") as memory:
            await memory.count()
            for line in sys.stdin:
                verb, _, rest = line.strip().partition(" ")
                if verb == "add":
                    print(await memory.add(rest, id=rest), flush=True)
                elif verb == "delete":
                    print(await memory.delete(rest), flush=True)
                else:
                    print(sorted(match.id for match in await memory.search(rest, 10)), flush=True)
    anyio.run(main)
"""


def test_two_processes_on_one_folder_of_chroma_keep_what_both_wrote_but_search_what_each_knew(tmp_path: Path) -> None:
    """Chroma's limit, not ours: see docs/concepts/memory.md. If this fails, Chroma has learned to share a folder."""

    def tell(process: subprocess.Popen[str], line: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    with child(CHROMA_CHILD, tmp_path / "vectors") as first:
        # The folder is there before the second opens it: Chroma fails when two make one at once.
        assert tell(first, "add apple") == "apple"
        with child(CHROMA_CHILD, tmp_path / "vectors") as second:
            assert tell(second, "search apple") == "['apple']"
            assert tell(first, "add banana") == "banana"
            assert tell(first, "delete apple") == "True"
            assert tell(first, "search apple banana") == "['banana']"
            assert tell(second, "search apple banana") == "['apple']"  # stale both ways
    with child(CHROMA_CHILD, tmp_path / "vectors") as third:
        assert tell(third, "search apple banana") == "['banana']"  # whoever opens it now finds what is there


@pytest.fixture
def server() -> ChromaServer:
    return ChromaServer()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])  # starting it takes seconds
async def test_a_chroma_server_that_is_killed_and_restarted(server: ChromaServer) -> None:
    await anyio.to_thread.run_sync(server.start)
    try:
        async with MemoryHub(semantic=server.url, embedder="lexical") as hub:
            context = hub.create_context("s")
            await context.remember("Maria prefers a window seat")
            server.kill()
            for operation in (context.remember("text"), context.recall("seat"), context.forget("x"), context.count()):
                with pytest.raises(MemoryStoreError, match=f"Chroma at {server.url} can't be reached; is it running"):
                    await operation
            await anyio.to_thread.run_sync(server.start)
            assert await context.recall("seat") == ["Maria prefers a window seat"]
    finally:
        server.close()


async def test_a_collection_that_somebody_deleted_is_made_again(tmp_path: Path) -> None:
    import chromadb

    async with SemanticMemory(str(tmp_path / "vectors"), embedder="lexical") as memory:
        await memory.add("one")
        client = chromadb.PersistentClient(tmp_path / "vectors", chromadb.Settings(anonymized_telemetry=False))
        for collection in client.list_collections():
            client.delete_collection(collection.name)
        assert await memory.search("one") == []
        await memory.add("two")
        assert [match.text for match in await memory.search("two")] == ["two"]
        for collection in client.list_collections():
            client.delete_collection(collection.name)
        await memory.add("three")
        assert [match.text for match in await memory.search("three")] == ["three"]
        client.close()
