"""The books of a run: what is spent, what is reserved, and who is refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any, Literal

from agenthelm._runtime.context import StopMark
from agenthelm._runtime.retry import Clock, SystemClock
from agenthelm.core.amounts import Amount, Budget, Totals
from agenthelm.core.prices import TokenUsage, to_pico, to_usd
from agenthelm.exceptions import BudgetExceededError

__all__ = ["Ledger", "Reservation"]

_log = logging.getLogger(__name__)
_RESOURCES = ("usd", "tokens", "calls", "tool_calls")
_USD = 0
_UNLIMITED = Budget()
_CLOCK: Clock = SystemClock()

_COUNTS = tuple(name for name in Totals.__dataclass_fields__ if name != "priced_usd")
_CALLS, _CACHED, _FAILED, _ESTIMATED, _UNPRICED, _TOOLS, _INPUT, _OUTPUT, _CACHED_IN, _REASONING, _EST_TOKENS = range(
    11
)
_PICO = len(_COUNTS)

LMOutcome = Literal["answered", "cached", "failed"]
"""How an LM call ended, for the books."""
_Key = tuple[str | None, str | None, str | None]
_Account = tuple[list[int], list[int], float]
"""What is spent, what is reserved, and since when."""


class Ledger:
    """The books of one scope: what it spent, what its calls in flight have reserved, and what it may use.

    Ledgers form a tree under the run's; a call is checked against, and booked in, each ledger from its own to the root.
    Safe to share between tasks and threads: the tree has one lock, held for microseconds and never over I/O. Money is
    kept in whole picodollars (1e-12 USD), so sums are exact.

    Args:
        scope: Whose budget it is: ``"run"``, ``"agent:NAME"`` or ``"tool:NAME"``.
        budget: The limits; None for none.
        parent: The enclosing scope's ledger.
        stop: Marked when a limit of this ledger refuses a call. Without one the parent's is used, and a root makes its
            own.
        drawn_from: What the enclosing tool call reserved: money spent here comes out of that, and is booked in the
            parents only when it is settled. Tokens and calls are booked in the parents at once.
        enforced: Whether limits refuse anything. Compensations are booked but never refused.
        clock: For ``Budget.seconds``.
        account: What the limits are compared with, where other ledgers add to it as well; see `agent`.

    Attributes:
        tool: The tool inside whose call this ledger is; None if it is in none.
    """

    __slots__ = (
        "_above", "_accounts", "_books", "_charged", "_clock", "_drawn", "_enforced", "_holding", "_limited", "_limits",
        "_lock", "_reserved", "_seconds", "_spent", "_started", "_unknown", "budget", "parent", "scope", "stop", "tool",
    )  # fmt: skip

    def __init__(
        self,
        scope: str,
        budget: Budget | None = None,
        *,
        parent: Ledger | None = None,
        stop: StopMark | None = None,
        drawn_from: Reservation | None = None,
        enforced: bool = True,
        clock: Clock | None = None,
        account: _Account | None = None,
    ) -> None:
        self.scope: str = scope
        self.budget: Budget = budget or _UNLIMITED
        self.parent: Ledger | None = parent
        self._clock: Clock = clock or (parent._clock if parent else _CLOCK)
        self._lock: threading.Lock = parent._lock if parent else threading.Lock()
        self.stop: StopMark = stop or (parent.stop if parent else StopMark())
        self.tool: str | None = scope[5:] if scope.startswith("tool:") else (parent.tool if parent else None)
        self._spent, self._reserved = ([0, 0, 0, 0], [0, 0, 0, 0]) if account is None else account[:2]
        self._accounts: dict[str, _Account] = parent._accounts if parent else {}
        self._charged = 0
        self._unknown = False
        self._books: dict[_Key, list[int]] = {}
        self._limits = _limits(self.budget)
        self._seconds = self.budget.seconds
        self._started = 0.0
        if self._seconds is not None:
            self._started = self._clock.monotonic() if account is None else account[2]
        self._enforced: bool = enforced and (parent is None or parent._enforced)
        # Without a limit of its own there is nothing to draw on: money then reserves in the parents as usual.
        self._drawn = drawn_from if self.budget.usd is not None else None
        # The ledgers above this one, with whether money is booked there at once; and those of them with limits, because
        # reservations only matter where something is compared with them. It is in neither itself: that would be a cycle.
        self._above: list[tuple[Ledger, bool]] = [] if parent is None else parent._chain()
        self._holding: list[tuple[Ledger, bool]] = [] if parent is None else parent._holds()
        if self._drawn is not None:
            self._drawn._drawer = self
            self._above = [(ledger, False) for ledger, _ in self._above]
            self._holding = [(ledger, False) for ledger, _ in self._holding]
        limited = bool(self._limits) or self._seconds is not None or (parent is not None and parent._limited)
        self._limited: bool = self._enforced and limited

    def child(
        self,
        scope: str,
        budget: Budget | None = None,
        *,
        stop: StopMark | None = None,
        drawn_from: Reservation | None = None,
    ) -> Ledger:
        """A ledger for a scope inside this one; see the class for the arguments."""
        return Ledger(scope, budget, parent=self, stop=stop, drawn_from=drawn_from)

    def agent(self, name: str, budget: Budget) -> Ledger:
        """A ledger for an agent's work in this scope, held to what that agent uses in the whole run.

        An agent may be called many times in a run: by a tool, in a nested run, in a collected branch. What it uses is
        added up over all of them; a refusal stops the scope in which the refused call was to be made.
        """
        with self._lock:
            account = self._accounts.setdefault(name, ([0, 0, 0, 0], [0, 0, 0, 0], self._clock.monotonic()))
        if any(ledger._spent is account[0] for ledger, _ in self._chain()):
            return self  # it has called itself
        return Ledger(f"agent:{name}", budget, parent=self, account=account)

    def unlimited(self) -> Ledger:
        """A ledger inside this one that books and refuses nothing."""
        return Ledger(self.scope, parent=self, enforced=False)

    def reserve(self, amount: Amount, *, deny_unpriced: bool = False) -> Reservation:
        """Set aside what a call may take, in this ledger and all above it, or in none.

        Args:
            amount: The most that the call can take.
            deny_unpriced: Refuse the call when its price is not known.

        Raises:
            BudgetExceededError: A limit would be passed. The scope of the ledger with the least room is marked stopped.
        """
        pico = to_pico(amount.usd) if amount.usd else 0
        want = (pico, amount.tokens, amount.calls, amount.tool_calls)
        if amount.usd is None and deny_unpriced and self._enforced:
            raise self._refused("price", limit=0.0, spent=0.0, reserved=0.0, requested=0.0)
        with self._lock:
            if self._limited:
                self._check(want)
            if self._limits or self._holding:
                for ledger, money in self._holds():
                    held = ledger._reserved
                    if money:
                        held[0] += pico
                    held[1] += want[1]
                    held[2] += want[2]
                    held[3] += want[3]
        return Reservation(self, want, amount.usd is not None)

    def check(self) -> None:
        """Raise if a limit of this ledger or one above it has already been passed: by time, or by `charge`.

        Raises:
            BudgetExceededError: It has; its scope is marked stopped.
        """
        if self._limited:
            with self._lock:
                self._check((0, 0, 0, 0))

    def charge(self, usd: float, *, agent: str | None = None) -> None:
        """Book money that was spent outside of any reservation.

        Never raises: an excess shows at the next call, and what is no amount is not booked, with a warning in the log.
        """
        try:
            pico = max(0, to_pico(float(usd)))
        except (TypeError, ValueError, OverflowError):
            _log.warning("charge(%r) is no amount of money; nothing was booked", usd)
            return
        with self._lock:
            self._charged += pico
            self._spend((pico, 0, 0, 0))
            for ledger, _ in self._chain():
                ledger._book((agent, None, self.tool))[_PICO] += pico

    def charge_unknown(self, *, agent: str | None = None) -> None:
        """Book that somebody may have spent money, and that nobody will ever know how much."""
        with self._lock:
            self._unknown = True
            for ledger, _ in self._chain():
                ledger._book((agent, None, self.tool))[_UNPRICED] += 1

    def total(self) -> Totals:
        """What this scope and everything inside it used so far."""
        with self._lock:
            return _sum(self._books.values())

    def totals(self, by: Literal["agent", "model", "tool"]) -> dict[str, Totals]:
        """The same, by who used it; what nobody of that kind used is left out."""
        index = ("agent", "model", "tool").index(by)
        with self._lock:
            groups: dict[str, list[list[int]]] = {}
            for key, counts in self._books.items():
                name = key[index]
                if name is not None:
                    groups.setdefault(name, []).append(counts)
            return {name: _sum(rows) for name, rows in sorted(groups.items())}

    @property
    def cost_usd(self) -> float | None:
        """What was spent, USD; None as soon as one call had no known price."""
        return self.total().cost_usd

    @property
    def priced_usd(self) -> float:
        """What was spent on everything with a known price, USD."""
        return self.total().priced_usd

    @property
    def charged_usd(self) -> float | None:
        """What was charged in this very scope, scopes inside it not included, USD; None if nobody knows."""
        with self._lock:
            return None if self._unknown else to_usd(self._charged)

    @property
    def root(self) -> Ledger:
        """The run's ledger, at the top of the tree."""
        return self._above[-1][0] if self._above else self

    def spent(self) -> Amount:
        """What the limits of this ledger see as spent: tool calls in flight are in it only when they have ended."""
        with self._lock:
            return Amount(to_usd(self._spent[0]), *self._spent[1:])

    def remaining(self) -> Budget:
        """What may still be reserved here, ledgers above not considered; None where there is no limit."""
        with self._lock:
            left = {_RESOURCES[i]: max(0, limit - self._spent[i] - self._reserved[i]) for i, limit in self._limits}
        seconds = None
        if self._seconds is not None:
            seconds = max(0.0, self._seconds - (self._clock.monotonic() - self._started))
        usd = left.pop("usd", None)
        return Budget(usd=None if usd is None else to_usd(usd), seconds=seconds, **left)

    def _chain(self) -> list[tuple[Ledger, bool]]:
        """Each ledger from here to the root, with whether money is booked there at once."""
        return [(self, True), *self._above]

    def _holds(self) -> list[tuple[Ledger, bool]]:
        """Those of them that reservations count in."""
        return [(self, True), *self._holding] if self._limits else self._holding

    def _check(self, want: tuple[int, int, int, int]) -> None:
        """Refuse on behalf of the ledger in which the smallest share of the request would fit."""
        worst: tuple[float, Ledger, int, int] | None = None
        for ledger, money in self._chain():
            if ledger._seconds is not None:
                elapsed = ledger._clock.monotonic() - ledger._started
                if elapsed >= ledger._seconds:
                    raise ledger._refused("seconds", limit=ledger._seconds, spent=elapsed, reserved=0.0, requested=0.0)
            for index, limit in ledger._limits:
                asked = want[index] if money or index != _USD else 0
                spent = ledger._spent[index]
                room = limit - spent - ledger._reserved[index]
                if spent > limit or (asked and asked > room):
                    share = max(0.0, room / asked) if asked else 0.0
                    if worst is None or share < worst[0]:
                        worst = (share, ledger, index, limit)
        if worst is not None:
            _, ledger, index, limit = worst
            scale = to_usd if index == _USD else float
            raise ledger._refused(
                _RESOURCES[index],
                limit=scale(limit),
                spent=scale(ledger._spent[index]),
                reserved=scale(ledger._reserved[index]),
                requested=scale(want[index]),
            )

    def _refused(
        self, resource: str, *, limit: float, spent: float, reserved: float, requested: float
    ) -> BudgetExceededError:
        error = BudgetExceededError(
            scope=self.scope, resource=resource, limit=limit, spent=spent, reserved=reserved, requested=requested
        )
        self.stop.set(error)
        return error

    def _spend(self, amount: tuple[int, int, int, int]) -> None:
        pico, tokens, calls, tool_calls = amount
        for ledger, money in self._chain():
            spent = ledger._spent
            spent[1] += tokens
            spent[2] += calls
            spent[3] += tool_calls
            if money:
                spent[0] += pico
                if ledger._drawn is not None:
                    ledger._drawn._cover(spent[0])

    def _unreserve(self, amount: tuple[int, int, int, int]) -> None:
        for ledger, money in self._holds():
            held = ledger._reserved
            if money:
                held[0] -= amount[0]
            held[1] -= amount[1]
            held[2] -= amount[2]
            held[3] -= amount[3]

    def _book(self, key: _Key) -> list[int]:
        counts = self._books.get(key)
        if counts is None:
            counts = self._books[key] = [0] * (len(_COUNTS) + 1)
        return counts


class Reservation:
    """What one call has set aside.

    Ends once, by the first of `settle`, `settle_call`, `keep` and `release`; later ones do nothing.
    """

    __slots__ = ("_covered", "_drawer", "_held", "_ledger", "_open", "_priced")

    def __init__(self, ledger: Ledger, held: tuple[int, int, int, int], priced: bool) -> None:
        self._ledger = ledger
        self._held = held
        self._priced = priced
        self._open = True
        self._covered = held[0]
        self._drawer: Ledger | None = None

    @property
    def amount(self) -> Amount:
        """What was reserved."""
        return Amount(to_usd(self._held[0]) if self._priced else None, *self._held[1:])

    def settle(
        self,
        amount: Amount | None = None,
        *,
        usage: TokenUsage | None = None,
        agent: str | None = None,
        model: str | None = None,
        outcome: LMOutcome = "answered",
    ) -> None:
        """Book what the call took in fact and give the rest back.

        A tool call whose ledger draws on this reservation is settled to what that ledger spent, and to the whole
        reservation if a call inside it had no known price; the ``usd`` given here is then not looked at.

        Args:
            amount: What it took; None for what the tool's ledger spent, or what was reserved where there is none.
                Unless it says otherwise, the calls and tool calls are those that were reserved.
            usage: The tokens by kind, and the model (LM calls).
            agent: Who asked.
            model: The model, where there is no ``usage`` to name it.
            outcome: How an LM call ended. One answered from a cache takes nothing, not even a call.
        """
        with self._ledger._lock:
            if not self._open:
                return
            if outcome == "cached":
                self._end(None)
                self._record((0, 0, 0, 0), usage, agent, outcome, unpriced=False)
                return
            drawer = self._drawer
            held = self._held
            usd: float | None
            if amount is not None:
                usd = amount.usd
            else:
                usd = to_usd(held[0]) if self._priced else None
            pico = to_pico(usd) if usd else 0
            booked = 0 if drawer is not None else pico
            if drawer is not None:
                pico = drawer._spent[0]
                if any(counts[_UNPRICED] for counts in drawer._books.values()):
                    pico = max(pico, held[0])
            tokens = held[1] if amount is None else amount.tokens
            calls = held[2] if amount is None or not amount.calls else amount.calls
            tools = held[3] if amount is None or not amount.tool_calls else amount.tool_calls
            self._end((pico, tokens, calls, tools))
            unpriced = usd is None and drawer is None
            self._record((booked, tokens, calls, tools), usage, agent, outcome, unpriced=unpriced, model=model)

    def settle_call(self) -> None:
        """Book the one tool call that was reserved; what it charged itself is in the books already."""
        ledger = self._ledger
        with ledger._lock:
            if not self._open:
                return
            self._end(None)
            self._covered = 0  # what is drawn on it from now on is spent at once
            key = (None, None, ledger.tool)
            for entry, _ in ledger._chain():
                entry._spent[3] += 1
                (entry._books.get(key) or entry._book(key))[_TOOLS] += 1

    def keep(self, *, agent: str | None = None, model: str | None = None) -> None:
        """Book the whole reservation, because the answer that would say less was lost."""
        with self._ledger._lock:
            if not self._open:
                return
            self._end(self._held)
            self._record(self._held, None, agent, "failed", unpriced=not self._priced, model=model, estimated=True)

    def release(self) -> None:
        """Give everything back: the call was not made."""
        with self._ledger._lock:
            if self._open:
                self._end(None)

    def _end(self, spent: tuple[int, int, int, int] | None) -> None:
        self._open = False
        ledger = self._ledger
        if ledger._limits or ledger._holding:
            ledger._unreserve((self._covered, *self._held[1:]))
        if spent is not None:
            ledger._spend(spent)
            self._covered = spent[0]

    def _record(
        self,
        amount: tuple[int, int, int, int],
        usage: TokenUsage | None,
        agent: str | None,
        outcome: LMOutcome,
        *,
        unpriced: bool,
        model: str | None = None,
        estimated: bool = False,
    ) -> None:
        pico, tokens, calls, tools = amount
        ledger = self._ledger
        key = (agent, usage.model if usage else model, ledger.tool)
        for entry, _ in ledger._chain():
            counts = entry._book(key)
            counts[_TOOLS] += tools
            counts[_PICO] += pico
            if outcome == "cached":
                counts[_CACHED] += 1
            if not calls:
                continue
            counts[_CALLS] += calls
            if unpriced:
                counts[_UNPRICED] += calls
            if outcome == "failed":
                counts[_FAILED] += calls
            if estimated:
                counts[_ESTIMATED] += calls
            if usage is not None:
                counts[_INPUT] += usage.input_tokens
                counts[_OUTPUT] += usage.output_tokens
                counts[_CACHED_IN] += usage.cached_input_tokens
                counts[_REASONING] += usage.reasoning_tokens
            elif tokens:
                counts[_EST_TOKENS] += tokens

    def _cover(self, pico: int) -> None:
        """See to it that the parents account for what was drawn beyond the reservation, as soon as it is spent."""
        if pico <= self._covered:
            return
        more = (pico - self._covered, 0, 0, 0)
        self._covered = pico
        if self._open:
            for ledger, money in self._ledger._holds():
                if money:
                    ledger._reserved[0] += more[0]
        else:
            self._ledger._spend(more)


def _limits(budget: Budget) -> tuple[tuple[int, int], ...]:
    if budget is _UNLIMITED:
        return ()
    usd = None if budget.usd is None else to_pico(budget.usd)
    values = (usd, budget.tokens, budget.calls, budget.tool_calls)
    return tuple((index, limit) for index, limit in enumerate(values) if limit is not None)


def _sum(rows: Iterable[list[int]]) -> Totals:
    total = [0] * (len(_COUNTS) + 1)
    for row in rows:
        for index, value in enumerate(row):
            total[index] += value
    fields: dict[str, Any] = dict(zip(_COUNTS, total, strict=False))
    return Totals(**fields, priced_usd=to_usd(total[_PICO]))
