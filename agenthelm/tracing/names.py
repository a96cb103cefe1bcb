"""Every name that appears in a span or a metric, in one table.

The names are those of the OpenTelemetry GenAI semantic conventions v1.41.1, the last tagged full set. Newer names stand
beside them where they differ; `BESIDE` says which. What has no convention is ours, under ``agenthelm.``.
"""

from __future__ import annotations

from typing import Final

CONVENTIONS: Final = "1.41.1"
SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{CONVENTIONS}"
SCOPE: Final = "agenthelm"
"""The instrumentation scope of every tracer and meter."""

CAPTURE_CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The environment variable that lets prompts, arguments and results into spans."""

# Operations, the values of gen_ai.operation.name.
CHAT: Final = "chat"
EMBEDDINGS: Final = "embeddings"
EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"
INVOKE_WORKFLOW: Final = "invoke_workflow"

MEMORY_OPERATIONS: Final = {
    "remember": "create_memory",
    "write": "upsert_memory",
    "set_shared": "upsert_memory",
    "recall": "search_memory",
    "search": "search_memory",
    "forget": "delete_memory",
    "delete": "delete_memory",
    "read": "read_memory",
    "get_shared": "read_memory",
    "list_keys": "list_memory",
}
"""Our verb -> the operation's name. The conventions have no word for reading one key, or for listing."""

# Attributes of the conventions.
AGENT_DESCRIPTION: Final = "gen_ai.agent.description"
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
EMBEDDING_DIMENSIONS: Final = "gen_ai.embeddings.dimension.count"
ERROR_TYPE: Final = "error.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_TYPE: Final = "exception.type"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OPERATION_NAME: Final = "gen_ai.operation.name"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOKEN_TYPE: Final = "gen_ai.token.type"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
TOOL_DESCRIPTION: Final = "gen_ai.tool.description"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
TOOL_TYPE: Final = "gen_ai.tool.type"
USAGE_CACHE_CREATION: Final = "gen_ai.usage.cache_creation.input_tokens"
USAGE_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_INPUT: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT: Final = "gen_ai.usage.output_tokens"
USAGE_REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"

# Attributes of the conventions after 1.41.1.
MEMORY_QUERY: Final = "gen_ai.memory.query.text"
MEMORY_RECORD_COUNT: Final = "gen_ai.memory.record.count"
MEMORY_RECORDS: Final = "gen_ai.memory.records"
MEMORY_STORE_ID: Final = "gen_ai.memory.store.id"
USAGE_CACHE_WRITE: Final = "gen_ai.usage.cache_write.input_tokens"

BESIDE: Final = {USAGE_CACHE_CREATION: USAGE_CACHE_WRITE}
"""A name of 1.41.1 -> the newer name that is emitted beside it."""

# Our own facts.
APPROVAL_APPROVER: Final = "agenthelm.approval.approver"
APPROVAL_OUTCOME: Final = "agenthelm.approval.outcome"
"""``approved`` or ``denied``."""
APPROVAL_WAIT: Final = "agenthelm.approval.wait"
"""Seconds."""
BUDGET: Final = {
    "usd": "agenthelm.budget.usd",
    "tokens": "agenthelm.budget.tokens",
    "calls": "agenthelm.budget.calls",
    "tool_calls": "agenthelm.budget.tool_calls",
    "seconds": "agenthelm.budget.seconds",
}
"""On a run: its limits, by resource."""
BUDGET_LIMIT: Final = "agenthelm.budget.limit"
BUDGET_RESOURCE: Final = "agenthelm.budget.resource"
BUDGET_SCOPE: Final = "agenthelm.budget.scope"
BUDGET_SPENT: Final = "agenthelm.budget.spent"
COMPENSATES: Final = "agenthelm.saga.compensates"
"""The id of the effect that a compensation undoes."""
COST_SOURCE: Final = "agenthelm.cost.source"
COST_USD: Final = "agenthelm.cost.usd"
EFFECT_ID: Final = "agenthelm.effect.id"
INPUT: Final = "agenthelm.input"
"""What an agent was given, in spans of an `AgentHelmTracer`; content."""
LATE: Final = "agenthelm.tool.late"
LINK_KIND: Final = "agenthelm.link"
"""On a link: ``undoes`` or ``continues``."""
MEMORY_KEY: Final = "agenthelm.memory.key"
MEMORY_OPERATION: Final = "agenthelm.memory.operation"
NAMESPACE: Final = "agenthelm.namespace"
OUTCOME: Final = "agenthelm.outcome"
"""How a call ended, by the words of the execution event."""
OUTPUT: Final = "agenthelm.output"
"""What an agent returned, for whoever sets it on such a span; content."""
RETRY_COUNT: Final = "agenthelm.retry.count"
RUN_ID: Final = "agenthelm.run.id"
SERVICE_NAME: Final = "agenthelm.service.name"
SAGA_STATUS: Final = "agenthelm.saga.status"
SAGA_STUCK: Final = "agenthelm.saga.stuck"
SAGA_UNDONE: Final = "agenthelm.saga.undone"
STEP: Final = "agenthelm.step"

CONTENT: Final = frozenset(
    {
        INPUT, INPUT_MESSAGES, MEMORY_KEY, MEMORY_QUERY, MEMORY_RECORDS, OUTPUT, OUTPUT_MESSAGES, SYSTEM_INSTRUCTIONS,
        TOOL_ARGUMENTS, TOOL_DEFINITIONS, TOOL_RESULT,
    }
)  # fmt: skip
"""Attributes that carry what people wrote or what tools handled; dropped unless opted in."""

# Metrics of the conventions.
METRIC_TOKEN_USAGE: Final = "gen_ai.client.token.usage"
METRIC_OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
METRIC_AGENT_DURATION: Final = "gen_ai.invoke_agent.duration"
METRIC_TOOL_DURATION: Final = "gen_ai.execute_tool.duration"
METRIC_WORKFLOW_DURATION: Final = "gen_ai.invoke_workflow.duration"

# Our own metrics.
METRIC_COST: Final = "agenthelm.cost"
METRIC_SAGAS: Final = "agenthelm.sagas"
METRIC_APPROVALS: Final = "agenthelm.approvals"
METRIC_APPROVAL_WAIT: Final = "agenthelm.approval.wait"

TOKEN_BUCKETS: Final = tuple(float(4**power) for power in range(14))
"""Tokens: 1, 4, 16 … 67,108,864."""
DURATION_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
"""Seconds: 0.01, 0.02 … 81.92."""
