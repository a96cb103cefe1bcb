"""A first use of an installed AgentHelm, run by `nox -s build` where there is no source tree."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import agenthelm

assert Path(agenthelm.__file__).is_relative_to(sys.prefix), agenthelm.__file__
for name in agenthelm.__all__:
    getattr(agenthelm, name)
assert any(str(path).endswith("agenthelm/py.typed") for path in files("agenthelm") or ())

helm = Path(sys.executable).with_name("agenthelm")
print(subprocess.run([helm, "--version"], check=True, capture_output=True, text=True).stdout.strip())
print(
    subprocess.run(
        [helm, "run", "Say hello", "--agents", "researcher,writer,reviewer", "--model", "offline"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
)
