"""Which test fails when a field of a tool's contract does nothing (``python -m tests.support.without_field [FIELD ...]``).

As a pytest plugin (``-p tests.support.without_field``) it takes the field that ``WITHOUT_FIELD`` names out of every
contract that is registered, as if nobody had written it.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agenthelm.core import function, signature
from agenthelm.core.contract import ToolContract

ROOT = Path(__file__).parents[2]
LIMIT = 120
"""Seconds for one run of the suite; some tests wait for ever for what a field does."""
SUITE = ("test_tool.py", "test_executor.py", "test_saga.py", "test_registry.py", "test_handlers.py")


def pytest_configure(config: pytest.Config) -> None:
    """Take the field out."""
    field = os.environ["WITHOUT_FIELD"]
    bare = getattr(ToolContract(), field)

    class Signature(signature.Signature):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.update({name: None for name in (field,) if name in ("inputs", "outputs")})
            super().__init__(*args, **options)

    finish = function.Tool.__post_init__

    def without(self: function.Tool) -> None:
        object.__setattr__(self, "contract", dataclasses.replace(self.contract, **{field: bare}))
        if field == "verify":  # a function is made ready to be asked before
            object.__setattr__(self, "verifier", None)
        finish(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(function, "Signature", Signature)
    patch.setattr(function.Tool, "__post_init__", without)
    config.add_cleanup(patch.undo)


def first_failure(field: str) -> str:
    """The first test of the suite that fails, or never ends, without a field; empty if none does."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.without_field", "-n0", "-x", "-v", "--tb=no"]
    command += ["-p", "no:cacheprovider", *(f"tests/unit/{name}" for name in SUITE)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "WITHOUT_FIELD": field}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            return f"{said.splitlines()[-1].split()[0]} (never ends)"
    failed = [line.split()[0] for line in said.splitlines() if line.startswith("tests/") and " FAILED" in line]
    return failed[0] if failed else ""


def main(fields: list[str]) -> int:
    """Print the table; 1 if a field could be left out unnoticed."""
    unnoticed = 0
    for field in fields or [field.name for field in dataclasses.fields(ToolContract)]:
        found = first_failure(field)
        unnoticed += not found
        print(f"{field:18} {found or 'NO TEST FAILS'}", flush=True)
    return min(unnoticed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
