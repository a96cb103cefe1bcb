"""The tools of a travel agency over a SQLite file. Each books something, and names what undoes it."""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

from agenthelm import tool

WORLD = Path("trip.db")
CARS = ("compact", "van")


def query(sql: str, *values: str) -> list[tuple]:
    with closing(sqlite3.connect(WORLD, timeout=10)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bookings (id TEXT PRIMARY KEY, what TEXT, note TEXT)")
        return connection.execute(sql, values).fetchall()


def bookings() -> list[str]:
    return [what for (what,) in query("SELECT what FROM bookings ORDER BY rowid")]


def moment(name: str) -> None:
    """For the demonstration: die here, as by `kill -9`, if that was asked for."""
    if os.environ.get("TRIP_KILL") == name:
        print(f"  ... kill -9 {name}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


# A flight is booked under our own key, so cancelling needs to know nothing else, and may be done twice.


@tool(compensating_tool="cancel_flight", side_effects=["booking:write"], retries=2, timeout=10.0)
def book_flight(to: str, idempotency_key: str) -> dict[str, str]:
    """Book a flight."""
    moment("before book_flight")
    query("INSERT OR IGNORE INTO bookings (id, what) VALUES (?, ?)", idempotency_key, f"flight to {to}")
    moment("after book_flight")
    return {"flight": idempotency_key, "city": to}


@tool(idempotent=True)
def cancel_flight(idempotency_key: str) -> None:
    """Cancel the flight that was booked under that key; fine if there is none."""
    moment("before cancel_flight")
    query("DELETE FROM bookings WHERE id = ?", idempotency_key)
    moment("after cancel_flight")


# The hotel gives out numbers of its own. It writes our key down but books twice if asked twice, so a booking that never
# answered is not repeated: `verify` asks for the number. Cancelling needs the number, and must not be done twice.


def find_hotel(idempotency_key: str) -> dict[str, str] | None:
    """The booking with our key on it, or None when there is none."""
    found = query("SELECT id FROM bookings WHERE note = ?", idempotency_key)
    return {"number": found[0][0]} if found else None


@tool(
    compensating_tool="cancel_hotel", verify=find_hotel, idempotent=False, side_effects=["booking:write"], timeout=10.0
)
def book_hotel(city: str, nights: int, idempotency_key: str) -> dict[str, str]:
    """Book a hotel."""
    moment("before book_hotel")
    number = f"H-{os.urandom(3).hex()}"
    query("INSERT INTO bookings VALUES (?, ?, ?)", number, f"hotel in {city}", idempotency_key)
    moment("after book_hotel")
    return {"number": number}


@tool
def cancel_hotel(number: str) -> None:
    """Cancel a booking by its number; an unknown one is an error."""
    moment("before cancel_hotel")
    if not query("DELETE FROM bookings WHERE id = ? RETURNING id", number):
        raise LookupError(f"there is no booking {number}")
    moment("after cancel_hotel")


@tool(compensating_tool="return_car", side_effects=["booking:write"])
def book_car(city: str, kind: str, idempotency_key: str) -> dict[str, str]:
    """Book a car."""
    moment("before book_car")
    if kind not in CARS:
        raise LookupError(f"no {kind} left in {city}")
    query("INSERT OR IGNORE INTO bookings (id, what) VALUES (?, ?)", idempotency_key, f"{kind} in {city}")
    moment("after book_car")
    return {"car": kind}


@tool(idempotent=True)
def return_car(idempotency_key: str) -> None:
    """Return the car that was booked under that key; fine if there is none."""
    moment("before return_car")
    query("DELETE FROM bookings WHERE id = ?", idempotency_key)
    moment("after return_car")
