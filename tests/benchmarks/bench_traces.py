"""What the database costs ``agenthelm traces list``: ``python tests/benchmarks/bench_traces.py [--events N] [--folder DIR]``.

The whole command, and the same table printed from rows that are at hand, alternate as processes of their own; so start-up,
imports and rendering are in both. Read the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import anyio
from bench_storage import event

from agenthelm.core.storage import EVENTS, Record, SqliteStorage

COMMAND = "import sys; from agenthelm.cli.main import main; sys.argv[0] = 'agenthelm'; main()"
WITHOUT = f"""
import json
from agenthelm.cli import traces
from agenthelm.core.storage.base import StoredRecord

async def read(wanted, *, limit, after=None):
    from agenthelm.cli import _events, _session

    _session.settings_from()
    with open('rows.json', encoding='utf-8') as rows:
        return [StoredRecord(**row) for row in json.load(rows)]

traces._read = read
{COMMAND}
"""


async def fill(path: Path, events: int) -> None:
    source = random.Random(1)
    async with SqliteStorage(path) as storage:
        for first in range(0, events, 5_000):
            await storage.append([Record(EVENTS, event(n, source)) for n in range(first, min(first + 5_000, events))])
        newest = await storage.read(EVENTS, limit=50, newest_first=True)
    rows = [{"stream": row.stream, "position": row.position, "data": dict(row.data)} for row in newest]
    (path.parents[1] / "rows.json").write_text(json.dumps(rows), "utf-8")


def run(program: str, folder: Path) -> tuple[float, str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, "traces", "list"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write (default: temporary)")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / ".agenthelm").mkdir(mode=0o700)
        anyio.run(fill, folder / ".agenthelm" / "agenthelm.db", options.events)
        assert run(COMMAND, folder)[1] == run(WITHOUT, folder)[1]
        times = [(run(COMMAND, folder)[0], run(WITHOUT, folder)[0]) for _ in range(options.rounds)]
    whole, bare = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"load {os.getloadavg()[0]:.1f}; the newest 50 of {options.events:,} events")
    print(
        f"the command {whole * 1e3:.0f} ms, the same table without a database {bare * 1e3:.0f} ms: {whole / bare:.2f}"
    )


if __name__ == "__main__":
    main()
