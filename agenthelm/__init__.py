"""Agents whose side effects you can take back: the public names, each imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agenthelm.agent.base import Agent
    from agenthelm.agent.builtin import ResearcherAgent, ReviewerAgent, WriterAgent
    from agenthelm.agent.registry import AGENT_REGISTRY, AgentRegistry
    from agenthelm.agent.signature import AgentSignature, Runnable
    from agenthelm.agent.tool_agent import ToolAgent
    from agenthelm.config import Settings, load_settings
    from agenthelm.core.cost import MODEL_PRICING, Budget, CostTracker, TokenUsage
    from agenthelm.core.event import ExecutionEvent
    from agenthelm.core.executor import charge
    from agenthelm.core.handlers import (
        ApprovalHandler,
        ApprovalRequest,
        AutoApprove,
        AutoDeny,
        CliHandler,
        Decision,
        PolicyHandler,
        PolicyRule,
        WebhookHandler,
    )
    from agenthelm.core.redaction import Redacted
    from agenthelm.core.storage import (
        EVENTS,
        BaseStorage,
        Between,
        InMemoryStorage,
        JsonStorage,
        Record,
        SqliteStorage,
        StoredRecord,
        StreamInfo,
    )
    from agenthelm.core.tool import TOOL_REGISTRY, Backoff, Tool, ToolContract, ToolRegistry, tool
    from agenthelm.core.tracer import ExecutionTracer
    from agenthelm.exceptions import (
        AgentHelmError,
        ApprovalDeniedError,
        BudgetExceededError,
        ModelCallError,
        OutcomeUnknown,
        PlanError,
        RunBusyError,
        RunExistsError,
        RunTimeoutError,
        ToolError,
        WiringError,
    )
    from agenthelm.memory.base import MemoryMatch
    from agenthelm.memory.context import MemoryContext
    from agenthelm.memory.hub import MemoryHub
    from agenthelm.memory.semantic import SemanticMemory
    from agenthelm.memory.short_term import ShortTermMemory
    from agenthelm.memory.sync_context import SyncMemoryContext
    from agenthelm.orchestration.orchestrator import Orchestrator
    from agenthelm.orchestration.parallel import Parallel
    from agenthelm.orchestration.pipeline import Pipeline
    from agenthelm.orchestration.plan import Ref, Step
    from agenthelm.orchestration.results import RunResult, SagaResult, StepRecord, StuckEffect
    from agenthelm.orchestration.runs import RunInfo, Runs
    from agenthelm.orchestration.saga import SagaOrchestrator, saga
    from agenthelm.tracing.tracer import AgentHelmTracer

    __version__: str

_HOMES = {
    "agenthelm.agent.base": ("Agent",),
    "agenthelm.agent.builtin": ("ResearcherAgent", "ReviewerAgent", "WriterAgent"),
    "agenthelm.agent.registry": ("AGENT_REGISTRY", "AgentRegistry"),
    "agenthelm.agent.signature": ("AgentSignature", "Runnable"),
    "agenthelm.agent.tool_agent": ("ToolAgent",),
    "agenthelm.config": ("Settings", "load_settings"),
    "agenthelm.core.cost": ("MODEL_PRICING", "Budget", "CostTracker", "TokenUsage"),
    "agenthelm.core.event": ("ExecutionEvent",),
    "agenthelm.core.executor": ("charge",),
    "agenthelm.core.handlers": (
        "ApprovalHandler",
        "ApprovalRequest",
        "AutoApprove",
        "AutoDeny",
        "CliHandler",
        "Decision",
        "PolicyHandler",
        "PolicyRule",
        "WebhookHandler",
    ),
    "agenthelm.core.redaction": ("Redacted",),
    "agenthelm.core.storage": (
        "EVENTS",
        "BaseStorage",
        "Between",
        "InMemoryStorage",
        "JsonStorage",
        "Record",
        "SqliteStorage",
        "StoredRecord",
        "StreamInfo",
    ),
    "agenthelm.core.tool": ("TOOL_REGISTRY", "Backoff", "Tool", "ToolContract", "ToolRegistry", "tool"),
    "agenthelm.core.tracer": ("ExecutionTracer",),
    "agenthelm.exceptions": (
        "AgentHelmError",
        "ApprovalDeniedError",
        "BudgetExceededError",
        "ModelCallError",
        "OutcomeUnknown",
        "PlanError",
        "RunBusyError",
        "RunExistsError",
        "RunTimeoutError",
        "ToolError",
        "WiringError",
    ),
    "agenthelm.memory.base": ("MemoryMatch",),
    "agenthelm.memory.context": ("MemoryContext",),
    "agenthelm.memory.hub": ("MemoryHub",),
    "agenthelm.memory.semantic": ("SemanticMemory",),
    "agenthelm.memory.short_term": ("ShortTermMemory",),
    "agenthelm.memory.sync_context": ("SyncMemoryContext",),
    "agenthelm.orchestration.orchestrator": ("Orchestrator",),
    "agenthelm.orchestration.parallel": ("Parallel",),
    "agenthelm.orchestration.pipeline": ("Pipeline",),
    "agenthelm.orchestration.plan": ("Ref", "Step"),
    "agenthelm.orchestration.results": ("RunResult", "SagaResult", "StepRecord", "StuckEffect"),
    "agenthelm.orchestration.runs": ("RunInfo", "Runs"),
    "agenthelm.orchestration.saga": ("SagaOrchestrator", "saga"),
    "agenthelm.tracing.tracer": ("AgentHelmTracer",),
}
"""Where each public name lives. DSPy, Chroma, Redis and the OpenTelemetry SDK take seconds to import: who asks for
``Budget`` pays for none of them."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AGENT_REGISTRY",
    "EVENTS",
    "MODEL_PRICING",
    "TOOL_REGISTRY",
    "Agent",
    "AgentHelmError",
    "AgentHelmTracer",
    "AgentRegistry",
    "AgentSignature",
    "ApprovalDeniedError",
    "ApprovalHandler",
    "ApprovalRequest",
    "AutoApprove",
    "AutoDeny",
    "Backoff",
    "BaseStorage",
    "Between",
    "Budget",
    "BudgetExceededError",
    "CliHandler",
    "CostTracker",
    "Decision",
    "ExecutionEvent",
    "ExecutionTracer",
    "InMemoryStorage",
    "JsonStorage",
    "MemoryContext",
    "MemoryHub",
    "MemoryMatch",
    "ModelCallError",
    "Orchestrator",
    "OutcomeUnknown",
    "Parallel",
    "Pipeline",
    "PlanError",
    "PolicyHandler",
    "PolicyRule",
    "Record",
    "Redacted",
    "Ref",
    "ResearcherAgent",
    "ReviewerAgent",
    "RunBusyError",
    "RunExistsError",
    "RunInfo",
    "RunResult",
    "RunTimeoutError",
    "Runnable",
    "Runs",
    "SagaOrchestrator",
    "SagaResult",
    "SemanticMemory",
    "Settings",
    "ShortTermMemory",
    "SqliteStorage",
    "Step",
    "StepRecord",
    "StoredRecord",
    "StreamInfo",
    "StuckEffect",
    "SyncMemoryContext",
    "TokenUsage",
    "Tool",
    "ToolAgent",
    "ToolContract",
    "ToolError",
    "ToolRegistry",
    "WebhookHandler",
    "WiringError",
    "WriterAgent",
    "__version__",
    "charge",
    "load_settings",
    "saga",
    "tool",
]


if not TYPE_CHECKING:  # a type checker must see which names are not there

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value: object = version("agenthelm")
        elif name in _HOME:
            from importlib import import_module

            value = getattr(import_module(_HOME[name]), name)
        else:
            raise AttributeError(f"module 'agenthelm' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
