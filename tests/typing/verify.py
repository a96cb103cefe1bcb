"""Whether every public name is typed for whoever uses it, as pyright sees it: `python tests/typing/verify.py`.

DSPy ships no types, so a class that is one of DSPy's is unknown by its base, here as in any program; that is let pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "pyright", "--verifytypes", "agenthelm", "--ignoreexternal", "--outputjson"]
NOT_OURS = ("Type of base class", "Type of metaclass", "No docstring found")


def main() -> int:
    """Print what is not typed; 1 if anything is not."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # pyright asks `python`
    done = subprocess.run(COMMAND, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    symbols = report.get("typeCompleteness", {}).get("symbols", [])
    problems = [
        f"{symbol['name']}: {' '.join(finding['message'].split())}"
        for symbol in symbols
        for finding in symbol.get("diagnostics", [])
        # "Partially unknown" follows from a base class or from a finding that is listed itself.
        if not finding["message"].startswith(NOT_OURS) and "partially unknown" not in finding["message"]
    ]
    print("\n".join(problems) or f"{len(symbols)} names, all typed")
    return 1 if problems or len(symbols) < 500 else 0


if __name__ == "__main__":
    raise SystemExit(main())
