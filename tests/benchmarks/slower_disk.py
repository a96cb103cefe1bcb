"""A disk that takes longer to commit than this machine's, because what shared commits are worth depends on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["rerun_on"]

_WAIT = "AGENTHELM_BENCH_COMMIT_WAIT_US"
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int late(const char *name, int file) {
    int (*sync)(int) = (int (*)(int)) dlsym(RTLD_NEXT, name);
    usleep(atoi(getenv("AGENTHELM_BENCH_COMMIT_WAIT_US")));
    return sync(file);
}
int fsync(int file) { return late("fsync", file); }
int fdatasync(int file) { return late("fdatasync", file); }
"""


def rerun_on(folder: Path, *, milliseconds: float) -> None:
    """Begin this program again, with so much added to whatever it syncs to the disk; returns in the program begun again.

    Args:
        folder: Where the library goes that does it.
        milliseconds: How much longer each takes; below 1,000.
    """
    if _WAIT in os.environ:
        return
    if sys.platform != "linux":
        raise SystemExit("a slower disk can only be played on Linux: it takes LD_PRELOAD")
    source, library = folder / "slower_disk.c", folder / "slower_disk.so"
    source.write_text(_SOURCE, encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), _WAIT: str(round(milliseconds * 1000))}
    raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)
