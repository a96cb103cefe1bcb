"""Every check of the project, each by one name: here, in `.ci/run` and in GitHub Actions."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
DEFAULT = PYTHONS[0]

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "docs"]

HERE = Path(__file__).parent


def install(session: nox.Session, *groups: str) -> None:
    """Install the package, editable, with dependency groups."""
    session.install("-e", ".", *(argument for group in groups for argument in ("--group", group)))


@nox.session(python=DEFAULT)
def lint(session: nox.Session) -> None:
    """Style, format and import contracts."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo", "--no-cache")


@nox.session(python=DEFAULT)
def types(session: nox.Session) -> None:
    """Strict types inside, complete types outside."""
    install(session, "lint", "test")
    session.run("mypy")
    session.run("mypy", "tests/typing/api.py")
    session.run("python", "tests/typing/verify.py")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole suite; arguments after `--` go to pytest."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session(python=DEFAULT, venv_backend="uv")  # pip can't ask for the lowest
def tests_lowest(session: nox.Session) -> None:
    """The suite with the lowest version of each direct dependency that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "-e", ".[otlp]", "--group", "test")
    session.run("pytest", *session.posargs)


@nox.session(python=DEFAULT)
def docs(session: nox.Session) -> None:
    """Build the site; a broken link or a missing name is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session(python=DEFAULT)
def examples(session: nox.Session) -> None:
    """Every code block of README and docs, and every example."""
    install(session, "test")
    session.run("pytest", "tests/test_examples.py", "tests/test_readme.py", *session.posargs)


@nox.session(python=DEFAULT)
def coverage(session: nox.Session) -> None:
    """Branch coverage: 90 % overall, 98 % where effects are made and undone."""
    install(session, "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n0", *session.posargs)
    session.run("coverage", "combine")
    inner = "agenthelm/core/*,agenthelm/orchestration/*,agenthelm/_runtime/*"
    session.run("coverage", "report", "--fail-under=90")
    session.run("coverage", "report", "--fail-under=98", f"--include={inner}")
    session.run("coverage", "html", "--quiet")


@nox.session(python=DEFAULT)
def build(session: nox.Session) -> None:
    """Build the distributions, then use the wheel in an environment that has no source tree."""
    target = Path(session.create_tmp()).resolve()
    dist = target / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build[uv]")
    session.run("python", "-m", "build", "--installer", "uv", "--outdir", str(dist))
    (wheel,) = dist.glob("*.whl")
    session.run("python", "-m", "venv", "--clear", str(target / "clean"))
    python = target / "clean" / "bin" / "python"
    session.run("uv", "pip", "install", "--python", str(python), str(wheel), external=True)
    elsewhere = target / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    elsewhere.mkdir()
    with session.chdir(elsewhere):
        session.run(str(python), str(HERE / "tests" / "smoke.py"), external=True)


@nox.session(python=DEFAULT)
def slow(session: nox.Session) -> None:
    """The long random runs that the suite leaves out."""
    install(session, "test")
    # One that takes hours is none that hangs.
    session.run("pytest", "-m", "slow", "-o", "faulthandler_timeout=14400", *session.posargs)


@nox.session(python=DEFAULT)
def fields(session: nox.Session) -> None:
    """Name the test that fails when a field of a tool's contract does nothing."""
    install(session, "test")
    session.run("python", "-m", "tests.support.without_field", *session.posargs)


@nox.session(python=DEFAULT)
def telemetry(session: nox.Session) -> None:
    """Send the traces of real runs to Arize Phoenix, in an environment of its own, and ask it what arrived."""
    install(session, "test")
    theirs = Path(session.create_tmp()).resolve() / "phoenix"
    session.run("python", "-m", "venv", "--clear", str(theirs))
    python = str(theirs / "bin" / "python")
    session.run("uv", "pip", "install", "--python", python, "arize-phoenix>=20", external=True)
    session.run("python", "tests/peers/phoenix_check.py", str(theirs / "bin" / "phoenix"))


@nox.session(python=DEFAULT)
def bench(session: nox.Session) -> None:
    """Measure; nothing fails."""
    install(session, "test")
    for script in sorted((HERE / "tests" / "benchmarks").glob("bench_*.py")):
        session.log(script.name)
        session.run("python", str(script), *session.posargs)
