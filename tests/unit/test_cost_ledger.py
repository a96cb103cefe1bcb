"""The books of a run: limits, reservations, draws, totals."""

from __future__ import annotations

import math
import threading
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from agenthelm._runtime.context import StopMark
from agenthelm.core.cost import Amount, Budget, Ledger, TokenUsage
from agenthelm.exceptions import BudgetExceededError, ConfigError

ONE = Amount(calls=1)


def usage(inputs: int = 10, outputs: int = 5, model: str = "m") -> TokenUsage:
    return TokenUsage(input_tokens=inputs, output_tokens=outputs, model=model)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("budget", "amount"),
    [
        (Budget(usd=0.10), Amount(usd=0.06)),
        (Budget(tokens=100), Amount(tokens=60)),
        (Budget(calls=1), Amount(calls=1)),
        (Budget(tool_calls=1), Amount(tool_calls=1)),
    ],
)
def test_what_is_reserved_can_not_be_reserved_again(budget: Budget, amount: Amount) -> None:
    ledger = Ledger("run", budget)
    ledger.reserve(amount)
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve(amount)
    assert caught.value.scope == "run"
    assert caught.value.spent == 0
    assert caught.value.reserved == caught.value.requested > 0
    assert ledger.stop.error is caught.value


def test_a_limit_can_be_used_up_to_the_last_cent_and_not_beyond() -> None:
    ledger = Ledger("run", Budget(usd=0.3))
    for _ in range(3):
        ledger.reserve(Amount(usd=0.1)).settle(Amount(usd=0.1))
    assert ledger.spent().usd == 0.3
    with pytest.raises(BudgetExceededError):
        ledger.reserve(Amount(usd=0.000_001))


def test_settling_gives_back_what_was_not_used() -> None:
    ledger = Ledger("run", Budget(usd=1.0, tokens=1000))
    hold = ledger.reserve(Amount(usd=0.9, tokens=900, calls=1))
    assert ledger.remaining().usd == pytest.approx(0.1)
    hold.settle(Amount(usd=0.2, tokens=15, calls=1), usage=usage())
    assert ledger.remaining() == Budget(usd=0.8, tokens=985)


@pytest.mark.parametrize("end", ["settle", "keep", "release"])
def test_a_reservation_ends_once(end: str) -> None:
    ledger = Ledger("run", Budget(usd=1.0))
    hold = ledger.reserve(Amount(usd=0.4, calls=1))
    getattr(hold, end)()
    first = ledger.spent()
    hold.settle(Amount(usd=0.1))
    hold.keep()
    hold.release()
    assert ledger.spent() == first
    assert ledger.remaining().usd == pytest.approx(1.0 - (first.usd or 0.0))


def test_released_calls_were_never_made() -> None:
    ledger = Ledger("run", Budget(calls=1))
    ledger.reserve(ONE).release()
    ledger.reserve(ONE).settle()
    assert ledger.total().calls == 1


def test_a_lost_answer_keeps_its_reservation_marked_estimated() -> None:
    ledger = Ledger("run", Budget(usd=1.0))
    hold = ledger.reserve(Amount(usd=0.25, tokens=500, calls=1))
    hold.keep(agent="a", model="m")
    total = ledger.totals("model")["m"]
    assert (total.estimated_calls, total.estimated_tokens, total.priced_usd) == (1, 500, 0.25)
    assert total.input_tokens == total.output_tokens == 0
    assert total.failed_calls == 1


def test_the_tightest_of_nested_limits_refuses_and_nothing_is_reserved_anywhere() -> None:
    run = Ledger("run", Budget(usd=0.10))
    agent = run.child("agent:a", Budget(usd=5.0))
    with pytest.raises(BudgetExceededError) as caught:
        agent.reserve(Amount(usd=0.5))
    assert caught.value.scope == "run"
    assert agent.remaining().usd == 5.0
    assert run.remaining().usd == 0.10


def test_among_several_refusals_the_one_with_least_room_speaks() -> None:
    run = Ledger("run", Budget(usd=1.0))
    agent = run.child("agent:a", Budget(usd=0.30))
    run.reserve(Amount(usd=0.97)).settle(Amount(usd=0.97))
    agent.reserve(Amount(usd=0.02)).settle(Amount(usd=0.02))
    with pytest.raises(BudgetExceededError) as caught:
        agent.reserve(Amount(usd=0.40))
    assert caught.value.scope == "run"


def test_a_refusal_stops_the_scope_of_its_ledger_and_no_other() -> None:
    run = Ledger("run", Budget(usd=10.0))
    branch_stop = StopMark()
    branch = run.child("run", Budget(usd=0.1), stop=branch_stop)
    agent = branch.child("agent:a")
    with pytest.raises(BudgetExceededError):
        agent.reserve(Amount(usd=0.2))
    assert branch_stop.error is not None
    assert agent.stop is branch_stop
    assert run.stop.error is None
    run.reserve(Amount(usd=0.2)).settle()


def test_siblings_share_their_parents_budget() -> None:
    run = Ledger("run", Budget(calls=2))
    left, right = run.child("agent:l"), run.child("agent:r")
    left.reserve(ONE).settle()
    right.reserve(ONE).settle()
    with pytest.raises(BudgetExceededError):
        left.reserve(ONE)


def test_a_free_tool_is_not_refused_and_may_spend_nothing() -> None:
    run = Ledger("run", Budget(usd=0.0))
    hold = run.reserve(Amount(usd=0.0, tool_calls=1))
    inner = run.child("tool:t", Budget(usd=0.0), drawn_from=hold)
    inner.reserve(Amount(usd=0.0, calls=1)).settle()
    with pytest.raises(BudgetExceededError) as caught:
        inner.reserve(Amount(usd=0.001, calls=1))
    assert caught.value.scope == "tool:t"
    hold.settle()


def test_calls_inside_a_tool_draw_on_its_reservation_instead_of_reserving_again() -> None:
    run = Ledger("run", Budget(usd=0.10, calls=3))
    hold = run.reserve(Amount(usd=0.08, tool_calls=1))
    tool = run.child("tool:t", Budget(usd=0.08), drawn_from=hold)
    tool.reserve(Amount(usd=0.05, calls=1)).settle(Amount(usd=0.03, calls=1))
    assert run.remaining().usd == pytest.approx(0.02)
    assert run.remaining().calls == 2
    hold.settle()
    assert run.spent() == Amount(usd=0.03, calls=1, tool_calls=1)
    assert run.total().priced_usd == 0.03


def test_what_is_drawn_on_a_call_that_has_ended_is_spent_at_once() -> None:
    run = Ledger("run", Budget(usd=1.0))
    hold = run.reserve(Amount(usd=0.5, tool_calls=1))
    hold.settle_call()
    hold.settle_call()
    assert run.spent() == Amount(tool_calls=1)
    assert run.remaining().usd == 1.0
    late = run.child("tool:t", Budget(usd=0.5), drawn_from=hold)
    late.charge(0.2)
    assert run.spent().usd == pytest.approx(0.2)
    assert run.remaining().usd == pytest.approx(0.8)


def test_an_unpriced_call_inside_a_tool_settles_it_at_its_max_cost() -> None:
    run = Ledger("run", Budget(usd=1.0))
    hold = run.reserve(Amount(usd=0.08, tool_calls=1))
    tool = run.child("tool:t", Budget(usd=0.08), drawn_from=hold)
    tool.reserve(Amount(usd=None, calls=1)).settle(Amount(usd=None, calls=1))
    hold.settle()
    assert run.spent().usd == 0.08
    assert run.cost_usd is None
    assert run.priced_usd == 0.0


def test_and_at_what_is_known_of_it_where_that_is_more() -> None:
    run = Ledger("run", Budget(usd=1.0))
    hold = run.reserve(Amount(usd=0.08, tool_calls=1))
    tool = run.child("tool:t", Budget(usd=0.08), drawn_from=hold)
    tool.reserve(Amount(usd=None, calls=1)).settle(Amount(usd=None, calls=1))
    tool.charge(0.5)
    hold.settle()
    assert (run.spent().usd, run.remaining().usd) == (0.5, 0.5)


def test_a_charge_beyond_the_reservation_of_a_nested_tool_comes_out_of_that_of_the_outer_one() -> None:
    run = Ledger("run", Budget(usd=1.0))
    outer_hold = run.reserve(Amount(usd=0.5, tool_calls=1))
    outer = run.child("tool:outer", Budget(usd=0.5), drawn_from=outer_hold)
    inner_hold = outer.reserve(Amount(usd=0.1, tool_calls=1))
    inner = outer.child("tool:inner", Budget(usd=0.1), drawn_from=inner_hold)
    inner.charge(0.2)
    assert (outer.remaining().usd, run.remaining().usd) == (pytest.approx(0.3), 0.5)
    inner_hold.settle()
    outer_hold.settle()
    assert (run.spent().usd, run.remaining().usd) == (0.2, 0.8)


def test_what_a_settlement_does_not_say_is_as_it_was_reserved() -> None:
    run = Ledger("run", Budget(calls=5, tool_calls=5))
    run.reserve(Amount(calls=2, tool_calls=1)).settle(Amount(usd=0.1))
    assert run.spent() == Amount(usd=0.1, tokens=0, calls=2, tool_calls=1)


def test_a_charge_beyond_the_reservation_shows_in_the_parents_at_once() -> None:
    run = Ledger("run", Budget(usd=0.10))
    hold = run.reserve(Amount(usd=0.02, tool_calls=1))
    tool = run.child("tool:t", Budget(usd=0.02), drawn_from=hold)
    tool.charge(0.05)
    assert run.remaining().usd == pytest.approx(0.05)
    tool.charge(0.04)
    assert run.remaining().usd == pytest.approx(0.01)
    with pytest.raises(BudgetExceededError):
        tool.reserve(ONE)
    hold.settle()
    assert run.spent().usd == 0.09


def test_what_a_tool_spends_after_it_was_settled_is_booked_in_the_run() -> None:
    run = Ledger("run", Budget(usd=1.0))
    hold = run.reserve(Amount(usd=0.10, tool_calls=1))
    tool = run.child("tool:t", Budget(usd=0.10), drawn_from=hold)
    late = tool.reserve(Amount(usd=0.05, calls=1))
    hold.settle()
    late.settle()
    assert run.spent().usd == 0.05


def test_nested_tools_draw_on_each_other() -> None:
    run = Ledger("run", Budget(usd=0.10))
    outer_hold = run.reserve(Amount(usd=0.10, tool_calls=1))
    outer = run.child("tool:outer", Budget(usd=0.10), drawn_from=outer_hold)
    inner_hold = outer.reserve(Amount(usd=0.06, tool_calls=1))
    inner = outer.child("tool:inner", Budget(usd=0.06), drawn_from=inner_hold)
    inner.reserve(Amount(usd=0.05, calls=1)).settle(Amount(usd=0.04, calls=1), usage=usage(), agent="a")
    inner_hold.settle()
    assert outer.spent().usd == 0.04
    outer_hold.settle()
    assert run.spent() == Amount(usd=0.04, tokens=0, calls=1, tool_calls=2)
    assert run.totals("tool")["inner"].priced_usd == 0.04


def test_charge_never_raises_and_the_excess_shows_at_the_next_door() -> None:
    ledger = Ledger("run", Budget(usd=0.01))
    ledger.charge(5.0)
    assert ledger.stop.error is None
    with pytest.raises(BudgetExceededError):
        ledger.reserve(Amount(tool_calls=1))
    assert ledger.cost_usd == 5.0


@pytest.mark.parametrize("amount", [math.nan, math.inf, None, "much", 10**400])
def test_what_is_no_amount_is_not_charged_and_said_in_the_log(amount: Any, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger("run")
    ledger.charge(amount)
    assert ledger.charged_usd == 0
    assert "is no amount of money; nothing was booked" in caplog.text


@pytest.mark.parametrize("amount", ["0.1", Decimal("0.1"), Fraction(1, 10)])
def test_what_can_be_read_as_one_is_charged(amount: Any) -> None:
    ledger = Ledger("run")
    ledger.charge(amount)
    assert ledger.charged_usd == 0.1


def test_what_was_charged_in_a_scope_is_told_without_the_scopes_inside_it() -> None:
    run = Ledger("run")
    outer = run.child("tool:outer")
    inner = outer.child("tool:inner")
    outer.charge(0.25, agent="writer")
    inner.charge(0.5, agent="writer")
    outer.reserve(Amount(usd=1.0, calls=1)).settle()
    assert (run.charged_usd, outer.charged_usd, inner.charged_usd) == (0.0, 0.25, 0.5)
    assert run.totals("agent")["writer"].cost_usd == 0.75
    assert run.cost_usd == 1.75


def test_seconds_are_checked_at_each_door() -> None:
    clock = FakeClock()
    ledger = Ledger("run", Budget(seconds=10), clock=clock)
    ledger.check()
    clock.now += 9.9
    ledger.reserve(ONE).settle()
    clock.now += 0.1
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve(ONE)
    assert caught.value.resource == "seconds"
    assert caught.value.limit == 10
    with pytest.raises(BudgetExceededError):
        ledger.check()


def test_a_scope_inside_goes_by_the_clock_of_its_run() -> None:
    clock = FakeClock()
    inner = Ledger("run", clock=clock).child("run").child("tool:t", Budget(seconds=5))
    inner.check()
    clock.now += 5
    with pytest.raises(BudgetExceededError, match="5 s"):
        inner.check()


def test_compensations_are_booked_and_never_refused() -> None:
    run = Ledger("run", Budget(usd=0.01, calls=0, seconds=0))
    undo = run.unlimited()
    undo.reserve(Amount(usd=3.0, calls=1)).settle(Amount(usd=2.0, calls=1))
    assert run.spent().usd == 2.0
    assert run.stop.error is None


def test_neither_is_what_they_do_through_agents_and_models_without_a_price() -> None:
    run = Ledger("run", Budget(usd=0.01))
    inside = run.unlimited().child("tool:undo").agent("a", Budget(calls=0, seconds=0))
    inside.reserve(Amount(usd=None, calls=1), deny_unpriced=True).settle(Amount(usd=None, calls=1))
    inside.check()
    assert (run.total().calls, run.cost_usd, run.stop.error) == (1, None, None)


def test_an_unknown_price_is_none_and_the_priced_part_stands_beside_it() -> None:
    ledger = Ledger("run", Budget(usd=0.5, tokens=100))
    ledger.reserve(Amount(usd=0.1, calls=1)).settle(Amount(usd=0.1, calls=1))
    assert ledger.cost_usd == 0.1
    hold = ledger.reserve(Amount(usd=None, tokens=40, calls=1))
    hold.settle(Amount(usd=None, tokens=40, calls=1), usage=usage(20, 20, "unknown"))
    assert ledger.cost_usd is None
    assert ledger.priced_usd == 0.1
    assert ledger.remaining().tokens == 60


def test_unpriced_calls_can_be_denied() -> None:
    ledger = Ledger("run", Budget())
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve(Amount(usd=None, calls=1), deny_unpriced=True)
    assert caught.value.resource == "price"
    assert ledger.stop.error is caught.value


def test_a_cached_answer_takes_nothing() -> None:
    ledger = Ledger("run", Budget(calls=0, usd=0.0))
    ledger.reserve(Amount()).settle(usage=usage(0, 0), outcome="cached", agent="a")
    total = ledger.total()
    assert (total.calls, total.cached_calls, total.cost_usd) == (0, 1, 0.0)


def test_whatever_was_reserved_for_it() -> None:
    limits = Budget(usd=1.0, tokens=100, calls=1)
    ledger = Ledger("run", limits)
    ledger.reserve(Amount(usd=0.9, tokens=90, calls=1)).settle(usage=usage(), outcome="cached", agent="a")
    ledger.reserve(Amount(usd=0.9)).settle(Amount(usd=0.0, tokens=9), usage=usage(), outcome="cached")
    total = ledger.total()
    assert (total.calls, total.cached_calls, total.cost_usd) == (0, 2, 0.0)
    assert (total.input_tokens, total.output_tokens, total.estimated_tokens) == (0, 0, 0)
    assert (ledger.spent(), ledger.remaining()) == (Amount(usd=0.0), limits)


def test_totals_by_agent_model_and_tool() -> None:
    run = Ledger("run")
    run.child("agent:a").reserve(ONE).settle(Amount(usd=0.1, calls=1), usage=usage(1, 2, "x"), agent="a")
    tool = run.child("agent:b").child("tool:t")
    tool.reserve(ONE).settle(Amount(usd=0.2, calls=1), usage=usage(3, 4, "y"), agent="b")
    assert {name: total.priced_usd for name, total in run.totals("agent").items()} == {"a": 0.1, "b": 0.2}
    assert {name: total.tokens for name, total in run.totals("model").items()} == {"x": 3, "y": 7}
    assert list(run.totals("tool")) == ["t"]
    assert run.total().tokens == 10
    assert tool.tool == "t"
    assert tool.root is run


def test_failed_calls_count_as_calls() -> None:
    ledger = Ledger("run", Budget(calls=2))
    ledger.reserve(ONE).settle(Amount(calls=1), outcome="failed", agent="a", model="m")
    total = ledger.totals("model")["m"]
    assert (total.calls, total.failed_calls, total.cost_usd) == (1, 1, 0.0)


@given(st.lists(st.integers(min_value=1, max_value=10**9), max_size=60))
def test_sums_are_exact(nano: list[int]) -> None:
    ledger = Ledger("run")
    for amount in nano:
        ledger.reserve(ONE).settle(Amount(usd=amount / 10**9, calls=1))
    assert ledger.priced_usd == float(sum(Decimal(amount) for amount in nano) / 10**9)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run", "agent", "tool"]),
            st.integers(0, 50),
            st.integers(0, 80),
            st.sampled_from(["settle", "keep", "release"]),
        ),
        max_size=40,
    )
)
def test_no_sequence_of_reservations_overshoots(steps: list[tuple[str, int, int, str]]) -> None:
    run = Ledger("run", Budget(tokens=200))
    agent = run.child("agent:a", Budget(tokens=120))
    tool = agent.child("tool:t", Budget(tokens=60))
    ledgers = {"run": run, "agent": agent, "tool": tool}
    for where, want, used, end in steps:
        try:
            hold = ledgers[where].reserve(Amount(tokens=want))
        except BudgetExceededError:
            continue
        if end == "settle":
            hold.settle(Amount(tokens=min(used, want)))
        else:
            getattr(hold, end)()
        for ledger, limit in ((run, 200), (agent, 120), (tool, 60)):
            assert ledger.spent().tokens <= limit
    assert run.spent().tokens >= agent.spent().tokens >= tool.spent().tokens


@pytest.mark.parametrize("threads", [1, 8, 64])
def test_many_threads_never_overshoot_one_budget(threads: int) -> None:
    ledger = Ledger("run", Budget(tokens=10_000))
    refused = []

    def work() -> None:
        agent = ledger.child("agent:x")
        try:
            while True:
                agent.reserve(Amount(tokens=70, calls=1)).settle(Amount(tokens=63, calls=1))
        except BudgetExceededError as error:
            refused.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(refused) == threads
    assert 10_000 - 70 * threads <= ledger.spent().tokens <= 10_000
    assert ledger.remaining().tokens == 10_000 - ledger.spent().tokens


@pytest.mark.parametrize("field", ["usd", "tokens", "calls", "tool_calls", "seconds"])
@pytest.mark.parametrize("limit", [-1, math.nan, "many", [1]])
def test_a_budget_refuses_what_is_no_limit_in_one_line(field: str, limit: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"Budget\({field}=\.\.\.\) must be a (whole )?number of at least 0, .* not "
    ) as caught:
        Budget(**{field: limit})
    assert "\n" not in str(caught.value)
    assert caught.value.setting == field


def test_a_limit_that_no_budget_has_is_refused_also_inside_of_somebody_elses_model() -> None:
    class Request(BaseModel):
        budget: Budget

    with pytest.raises(ConfigError, match=r"no limit 'usdd'. Did you mean 'usd'\?") as caught:
        Budget(usdd=1.0)  # type: ignore[call-arg]
    assert caught.value.setting == "usdd"
    with pytest.raises(ConfigError, match=r"no limit 'dollars'. It has: usd, tokens, calls, tool_calls, seconds\."):
        Budget(dollars=1.0)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="no limit 'usdd'"):
        Request.model_validate({"budget": {"usdd": 1.0}})
    assert Request.model_validate({"budget": {"usd": 1.0}}).budget == Budget(usd=1.0)


@pytest.mark.parametrize("field", ["usd", "seconds"])
@pytest.mark.parametrize("limit", [math.inf, 1e300])
def test_a_limit_beyond_counting_is_none(field: str, limit: float) -> None:
    assert Budget(**{field: limit}) == Budget()
    ledger = Ledger("run", Budget(calls=2, **{field: limit}))
    ledger.reserve(Amount(usd=1e6, calls=1))
    assert ledger.remaining() == Budget(calls=1)


@pytest.mark.parametrize(
    ("resource", "limit", "spent", "requested", "words"),
    [
        ("calls", 1, 1, 1, "1 call; 1 spent and 0 reserved, so a call that may take 1 was not made"),
        ("calls", 2, 2, 1, "2 calls; 2 spent and 0 reserved, so a call that may take 1 was not made"),
        ("calls", 0, 0, 1, "0 calls; 0 spent and 0 reserved, so a call that may take 1 was not made"),
        ("tool_calls", 1, 1, 1, "1 tool call; 1 spent and 0 reserved, so a call that may take 1 was not made"),
        ("tokens", 1_234_567, 1_000_000, 300_000, "1234567 tokens; 1000000 spent and 0 reserved, so a call that may take 300000 was not made"),
        ("usd", 0.003, 0.0023, 0.002, "0.003 usd; 0.0023 spent and 0 reserved, so a call that may take 0.002 was not made"),
        ("usd", 1.0, 1.25, 0, "1 usd; 1.25 spent and 0 reserved, so the next call was not made"),
        ("seconds", 1, 1.5, 0, "1 second; 1.5 have passed, so the next call was not made"),
        ("seconds", 60, 61.25, 0, "60 seconds; 61.25 have passed, so the next call was not made"),
    ],
)  # fmt: skip
def test_a_refusal_can_be_read_aloud(resource: str, limit: float, spent: float, requested: float, words: str) -> None:
    error = BudgetExceededError(scope="run", resource=resource, limit=limit, spent=spent, requested=requested)
    assert str(error) == f"budget of run is {words}"


def test_an_agent_that_calls_itself_is_booked_once() -> None:
    run = Ledger("run")
    outer = run.agent("a", Budget(calls=3))
    inner = outer.child("tool:t").agent("a", Budget(calls=3))
    inner.reserve(Amount(calls=1)).settle(Amount(calls=1))
    assert outer.spent().calls == inner.spent().calls == 1
    other = run.child("run", stop=StopMark()).agent("a", Budget(calls=3))
    hold = other.reserve(Amount(calls=2))
    with pytest.raises(BudgetExceededError):
        outer.reserve(Amount(calls=1))
    assert other.stop.error is None
    assert outer.stop.error is not None
    hold.release()
    assert outer.remaining().calls == 2
