"""In which order agents run, and how what they did is undone. Names are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthelm._runtime.progress import Progress
from agenthelm.lazy import lazily

if TYPE_CHECKING:
    from agenthelm.orchestration.orchestrator import Orchestrator
    from agenthelm.orchestration.parallel import Parallel
    from agenthelm.orchestration.pipeline import Pipeline
    from agenthelm.orchestration.plan import Ref, Step
    from agenthelm.orchestration.results import RunResult, SagaResult, StepRecord, StuckEffect
    from agenthelm.orchestration.runs import RunInfo, Runs
    from agenthelm.orchestration.saga import SagaOrchestrator
    from agenthelm.orchestration.scope import SagaScope

__all__ = [
    "Orchestrator",
    "Parallel",
    "Pipeline",
    "Progress",
    "Ref",
    "RunInfo",
    "RunResult",
    "Runs",
    "SagaOrchestrator",
    "SagaResult",
    "SagaScope",
    "Step",
    "StepRecord",
    "StuckEffect",
]

_HOMES = {
    "Orchestrator": "orchestrator",
    "Parallel": "parallel",
    "Pipeline": "pipeline",
    "Ref": "plan",
    "RunInfo": "runs",
    "RunResult": "results",
    "Runs": "runs",
    "SagaOrchestrator": "saga",
    "SagaResult": "results",
    "SagaScope": "scope",
    "Step": "plan",
    "StepRecord": "results",
    "StuckEffect": "results",
}


if not TYPE_CHECKING:  # a type checker must see which names are not there
    __getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
