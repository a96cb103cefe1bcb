"""What a run hands back: a mapping that knows its run."""

from __future__ import annotations

from agenthelm.core.ledger import Ledger
from agenthelm.orchestration.results import RunResult, SagaResult


def test_a_result_is_its_final_state_and_knows_its_run() -> None:
    saga = SagaResult("success", in_doubt=("e2",), irreversible=("e3",), run_id="r1")
    ledger = Ledger("run")
    ledger.charge(0.25)
    result = RunResult({"text": "hi"}, run_id="r1", session_id="s", namespace="n", ledger=ledger, saga=saga)
    assert (dict(result), len(result), list(result)) == ({"text": "hi"}, 1, ["text"])
    assert repr(result) == "RunResult({'text': 'hi'}, run_id='r1')"
    assert (result.in_doubt, result.irreversible) == (("e2",), ("e3",))
    assert (result.cost_usd, result.priced_usd) == (0.25, 0.25)


def test_only_a_saga_whose_effects_all_stand_is_ok() -> None:
    assert SagaResult("success").ok
    assert not any(SagaResult(status).ok for status in ("stopped", "rolled_back", "failed"))
