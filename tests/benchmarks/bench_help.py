"""What a user waits for before anything happens: `agenthelm --help` beside a bare Typer and Rich app, and `import agenthelm`."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BARE = """
import typer
import rich.console
app = typer.Typer(help="A bare app.", pretty_exceptions_enable=False)
@app.callback()
def root() -> None: ...
@app.command()
def one(task: str, agents: list[str] = typer.Option(None, "--agents", "-a", help="Which.")) -> None: "Do one thing."
@app.command()
def two(name: str) -> None: "Do another."
app(["--help"])
"""
PROGRAMS = {
    "python": "pass",
    "bare app --help": BARE,
    "agenthelm --help": "from agenthelm.cli.main import main; main(['--help'])",
    "import agenthelm": "import agenthelm",
    "import agenthelm, Budget": "import agenthelm; agenthelm.Budget",
}


def once(program: str) -> float:
    """Seconds until a fresh interpreter has run a program."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Interleave the programs, so that they share the machine's moods, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for program in PROGRAMS.values():
        once(program)  # warm
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            times[name].append(once(program))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:28} {value * 1000:7.1f} ms")
    print(f"{'--help against a bare app':28} {median['agenthelm --help'] / median['bare app --help']:7.2f} x")
    print(f"{'import agenthelm, alone':28} {(median['import agenthelm'] - median['python']) * 1000:7.1f} ms")


if __name__ == "__main__":
    main()
