"""The trip of `examples/trip_booking`, as its user sees it: booked, failed, killed, recovered, undone."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.cli import Cli, environment

TRIP = Path(__file__).resolve().parents[2] / "examples" / "trip_booking"
PROGRAM, PLAN = str(TRIP / "main.py"), str(TRIP / "trip.yaml")
FLIGHT, HOTEL, CAR = "flight to Lisbon", "hotel in Lisbon", "compact in Lisbon"


def trip(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        cwd=folder,
        env=environment(folder, {"AGENTHELM_MODEL": "offline"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def booked(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "trip.db")) as connection:
        return [what for (what,) in connection.execute("SELECT what FROM bookings ORDER BY rowid")]


def told(output: str) -> list[str]:
    """What the program says happened to which tool, in order."""
    return [line.strip() for line in output.splitlines() if line.strip().startswith(("done", "FAILED", "undone"))]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("tools.py", (TRIP / "tools.py").read_text("utf-8"))
    cli.write("agenthelm.toml", 'app = "tools.py"\n')
    return cli


def test_a_car_that_is_sold_out_takes_back_the_hotel_and_the_flight(tmp_path: Path) -> None:
    output = trip(tmp_path, "agents", "--car", "limousine")
    assert told(output) == [
        "done book_flight", "done book_hotel", "FAILED book_car LookupError: no limousine left in Lisbon",
        "undone book_car", "undone book_hotel", "undone book_flight",
    ]  # fmt: skip
    assert "rolled_back" in output
    assert booked(tmp_path) == []


def test_a_killed_trip_is_recovered_once(tmp_path: Path, cli: Cli) -> None:
    trip(tmp_path, "agents", "--kill", "after book_hotel", code=-signal.SIGKILL)
    assert booked(tmp_path) == [FLIGHT, HOTEL]
    assert told(trip(tmp_path, "recover")) == ["done book_hotel.verify", "undone book_hotel", "undone book_flight"]
    assert booked(tmp_path) == []
    assert "nothing to recover" in cli("saga", "recover").stderr


def test_an_undo_that_is_killed_is_finished_and_done_once(tmp_path: Path) -> None:
    trip(tmp_path, "steps", "--car", "limousine", "--kill", "after cancel_hotel", code=-signal.SIGKILL)
    assert booked(tmp_path) == [FLIGHT]
    output = trip(tmp_path, "recover")  # a second cancellation of the hotel would fail
    assert "rolled_back" in output
    assert booked(tmp_path) == []


def test_a_killed_plan_goes_on_where_it_was_and_books_nothing_twice(tmp_path: Path) -> None:
    trip(tmp_path, "steps", "--kill", "after book_hotel", code=-signal.SIGKILL)
    output = trip(tmp_path, "recover", "--resume")
    assert told(output) == ["done book_hotel.verify", "done book_car"]
    assert booked(tmp_path) == [FLIGHT, HOTEL, CAR]


def test_the_command_line_sees_the_programs_runs_and_undoes_a_good_one(tmp_path: Path, cli: Cli) -> None:
    assert "success" in trip(tmp_path, "agents")
    shown = cli("saga", "show", "last").stdout
    assert [tool for tool in ("book_flight", "book_hotel", "book_car") if tool in shown] == [
        "book_flight", "book_hotel", "book_car",
    ]  # fmt: skip
    preview = cli("saga", "undo", "last", "--dry-run").stderr.splitlines()
    assert preview == [
        "undo book_car by return_car", "undo book_hotel by cancel_hotel", "undo book_flight by cancel_flight",
    ]  # fmt: skip
    assert booked(tmp_path) == [FLIGHT, HOTEL, CAR]
    assert ": rolled_back" in cli("saga", "undo", "last", "--yes").stderr
    assert booked(tmp_path) == []


def test_the_plan_in_yaml_fails_for_want_of_a_limousine_and_leaves_nothing(tmp_path: Path, cli: Cli) -> None:
    assert "cancel_hotel" in cli("saga", "run", PLAN, "--dry-run").stdout
    assert "no limousine left in Lisbon" in cli("saga", "run", PLAN, code=1).stderr
    assert booked(tmp_path) == []


def test_the_plan_in_yaml_is_killed_shown_and_recovered(tmp_path: Path, cli: Cli) -> None:
    cli.process("saga", "run", PLAN, code=-signal.SIGKILL, TRIP_KILL="after book_hotel")
    assert "interrupted: its process is gone" in cli("saga", "show", "last").stdout
    assert booked(tmp_path) == [FLIGHT, HOTEL]
    recovered = cli("saga", "recover").stderr
    assert "undone: book_hotel (hotel), book_flight (flight)" in recovered
    assert booked(tmp_path) == []
