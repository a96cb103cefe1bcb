"""Each known way to get tools, storage, undo, cost and the command line wrong, and the test that would notice it here.

The names are checked: a test that is renamed or deleted has to be named anew.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from agenthelm._runtime.context import RunContext, entered
from agenthelm.agent.toolset import Toolset
from agenthelm.core.executor import ToolExecutor, using
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry
from agenthelm.exceptions import UnknownToolError

ROOT = Path(__file__).resolve().parents[1]

PITFALLS: dict[str, tuple[str, ...]] = {
    # Undo
    "a swallowed tool error hides that the run failed": (
        "unit/test_saga.py::test_a_swallowed_stop_is_raised_at_the_edge",
        "integration/test_orchestrator.py::test_what_agents_did_is_undone_when_a_later_one_fails",
    ),
    "a compensator gets the forward arguments only": (
        "unit/test_saga.py::test_it_gets_arguments_then_fields_then_result_and_key",
    ),
    "a failed compensation is invisible, or aborts the others": (
        "unit/test_saga.py::test_a_failing_one_never_stops_the_others_and_is_reported",
        "integration/test_cli_run.py::test_what_could_not_be_undone_ends_with_3",
    ),
    "a compensator's signature does not match": (
        "unit/test_tool.py::test_checks_what_a_compensator_can_be_given",
        "integration/test_orchestrator.py::test_a_compensation_that_could_never_run_is_an_error_before_the_first_effect",
    ),
    "rollback in the order of the list; siblings go on": (
        "unit/test_saga.py::test_a_failure_undoes_in_reverse_order_of_completion",
        "unit/test_saga.py::test_siblings_of_a_failed_step_stop_before_anything_is_undone",
    ),
    "cancellation and timeouts undo nothing": (
        "unit/test_saga.py::test_cancellation_undoes_and_goes_on",
        "unit/test_saga.py::test_native_cancellation_too_once_and_twice",
        "integration/test_orchestrator.py::test_a_deadline_undoes_too",
    ),
    "a deadline fires late": ("unit/test_executor.py::test_an_async_tool_is_cancelled_at_once",),
    "a kill leaves nothing behind to undo by": (
        "faults/test_saga_crash.py::test_a_run_killed_at_any_point_is_undone_or_resumed_or_says_what_is_in_doubt",
    ),
    "a later failing saga undoes an earlier one": (
        "unit/test_saga.py::test_a_later_saga_never_undoes_an_earlier_one",
    ),
    "retries in two layers multiply": ("unit/test_executor.py::test_only_the_executor_retries_and_counts_right",),
    "a tool error is taken for the run's failure": (
        "unit/test_saga.py::test_a_tool_error_that_is_handled_undoes_nothing",
    ),
    "an interrupted rollback compensates twice": (
        "faults/test_saga_crash.py::test_the_same_with_every_recovery_killed_at_every_point",
    ),
    "an undo runs before its effect, in a thread that was let go": (
        "unit/test_executor.py::test_a_sync_tool_is_awaited_and_its_true_outcome_recorded",
        "unit/test_tool.py::test_are_refused_by_name",
    ),
    "a retry or a resumption repeats a side effect": (
        "unit/test_executor.py::test_the_key_is_stable_over_retries_and_new_for_each_call",
        "unit/test_executor.py::test_an_effect_in_doubt_is_retried_only_if_that_is_harmless",
    ),
    "a storage error after the effect is the tool's failure": (
        "unit/test_executor.py::test_a_broken_disk_is_never_the_tools_failure_and_ends_the_run",
    ),
    # Tools
    "@tool crashes on annotations, or breaks when bare": (
        "unit/test_tool.py::test_annotations_that_others_crash_on",
        "unit/test_tool.py::test_a_bare_decorator_returns_the_function_itself",
    ),
    "an empty message is taken for success": (
        "unit/test_executor.py::test_a_type_without_a_message_is_still_a_failure",
    ),
    "fields of the contract are accepted and never enforced": (
        "unit/test_executor.py::test_the_deadline_is_of_one_attempt",
        "unit/test_executor.py::test_max_cost_is_reserved_before_the_call",
        "unit/test_tool.py::test_filters_by_tags_and_side_effects",
        "unit/test_tool.py::test_only_the_verb_read_changes_nothing",
    ),
    "max_cost=0.0 refuses every tool": ("unit/test_executor.py::test_a_free_tool_is_not_refused",),
    "async tools are never awaited": (
        "unit/test_executor.py::test_sync_and_async_tools_run_with_validated_arguments",
        "unit/test_executor.py::test_a_coroutine_that_nobody_awaited_is_no_result",
    ),
    "an async approval handler that says no approves": ("unit/test_executor.py::test_anything_but_a_yes_is_a_no",),
    "an LM sees no parameters": ("unit/test_tool.py::test_a_model_sees_what_it_has_to_give",),
    "an LM may name any registered tool": (
        "unit/test_agent_tools.py::test_a_tool_the_agent_was_not_given_is_refused_and_the_agent_goes_on",
        "test_pitfalls.py::test_a_tool_that_an_agent_was_not_given_is_refused_and_on_record",
    ),
    "without a tracer nothing is asked and nothing retried": (
        "unit/test_executor.py::test_outside_of_a_run_contracts_hold",
        "unit/test_agent.py::test_outside_of_a_run_contracts_hold_and_approvals_are_denied",
    ),
    "failed and denied calls vanish from the record": (
        "unit/test_executor.py::test_without_anybody_to_ask_it_is_denied",
        "unit/test_executor.py::test_a_denial_can_be_final",
        "unit/test_executor.py::test_an_unknown_tool_and_one_that_was_not_given",
    ),
    "events of several threads bear the wrong agent": (
        "unit/test_executor.py::test_eight_threads_and_many_agents_keep_their_names",
    ),
    "retries wait a fixed time, block, and follow every exception": (
        "unit/test_executor.py::test_only_what_the_contract_names_is_retried",
        "unit/test_executor.py::test_wrong_arguments_never_reach_the_tool",
        "unit/test_executor.py::test_the_retry_after_header_of_a_response_is_obeyed",
    ),
    "a sync tool blocks the loop": ("unit/test_executor.py::test_a_sync_tool_does_not_block_the_loop",),
    "what is executed is not what was approved": (
        "unit/test_executor.py::test_shared_arguments_that_change_after_approval_are_refused",
        "unit/test_executor.py::test_arguments_that_change_between_approval_and_effect_change_nothing",
        "unit/test_executor.py::test_an_approval_for_other_arguments_does_not_count",
    ),
    "approvals never expire": (
        "unit/test_executor.py::test_nobody_answers_in_time",
        "unit/test_executor.py::test_an_approval_that_comes_after_its_expiry_does_not_count",
    ),
    "one failed parallel tool loses its siblings' results": (
        "unit/test_parallel.py::test_collect_keeps_what_succeeded_and_names_what_failed",
        "unit/test_parallel.py::test_the_first_failure_cancels_the_others_and_is_raised_bare",
    ),
    # Storage and memory
    "threads lose each other's events": (
        "faults/test_storage_cancellation.py::test_eight_threads_with_loops_of_both_backends_lose_none_of_800_events",
        "faults/test_storage_processes.py::test_two_processes_write_10_000_events_each_and_none_is_lost_or_torn",
    ),
    "a truncated file loads as empty and is destroyed": (
        "unit/test_storage_json.py::test_a_torn_last_line_is_skipped_counted_and_repaired_by_the_next_append",
        "unit/test_storage_json.py::test_a_file_that_is_no_log_of_ours_is_refused_and_not_touched",
    ),
    "appending costs more the longer the file is": (
        "unit/test_storage_json.py::test_appending_costs_the_same_however_long_the_file_is",
    ),
    "clean-up by pattern deletes somebody else's data": (
        "contracts/test_memory_isolation.py::test_hostile_names_of_namespaces_and_sessions_never_meet",
    ),
    "a tenant is stamped on write and dropped on read": (
        "contracts/test_memory_isolation.py::test_answers_as_if_each_scope_had_a_store_of_its_own",
    ),
    "an async store blocks the loop on a lock": (
        "faults/test_memory_file_faults.py::test_a_locked_file_is_one_error_and_never_blocks_the_loop",
    ),
    "semantic memory needs what nobody installs": (
        "unit/test_memory_embedders.py::test_auto_takes_the_lexical_embedder_when_minilm_is_not_here_and_says_so_once",
    ),
    # Cost and telemetry
    "prices by a part of the name": (
        "unit/test_cost_prices.py::test_a_name_matches_with_and_without_its_provider_and_never_by_a_part",
    ),
    "trackers that nobody calls": ("unit/test_lm_door.py::test_a_call_is_booked_recorded_and_reported",),
    "budgets that are checked afterwards, or skip unpriced calls": (
        "unit/test_lm_door.py::test_a_call_that_would_pass_the_budget_is_not_made",
        "unit/test_lm_door.py::test_an_unknown_price_can_be_denied_or_allowed_in_silence",
    ),
    "cached answers are billed": ("unit/test_lm_door.py::test_cached_answers_cost_nothing_and_are_marked",),
    "one span a run, orphans from threads": (
        "unit/test_tracing_run.py::test_a_run_is_one_trace_across_tasks_threads_and_hops_back",
        "unit/test_tracing_spans.py::test_parents_are_right_across_tasks_and_worker_threads",
    ),
    "the exit hangs without a collector": (
        "integration/test_otlp.py::test_an_unreachable_collector_costs_one_warning_and_is_not_waited_for",
    ),
    "prompts and secrets in traces": (
        "unit/test_tracing_spans.py::test_content_stays_out_unless_opted_in",
        "unit/test_tracing_spans.py::test_secrets_reach_no_exporter_even_with_content",
    ),
    "the global provider is taken over": (
        "unit/test_tracing_setup.py::test_shutting_down_gives_the_global_providers_back",
        "unit/test_tracing_spans.py::test_without_an_sdk_there_is_one_shared_handle_that_does_nothing",
    ),
    # CLI
    "every failure exits 0": (
        "integration/test_cli_run.py::test_what_a_failed_run_did_is_undone_and_said",
        "integration/test_cli_look.py::test_wrong_usage_is_one_line_and_exit_2",
    ),
    "secrets are echoed": (
        "integration/test_cli_errors.py::test_a_key_is_never_printed",
        "integration/test_cli_errors.py::test_a_secret_in_an_error_s_own_words_is_printed_nowhere",
    ),
    "files that others can read": (
        "integration/test_cli_run.py::test_everything_lies_in_one_folder_that_only_its_owner_reads",
    ),
    "an app in the current directory is not found": (
        "integration/test_cli_run.py::test_the_app_can_be_a_module_or_come_from_the_settings",
    ),
    "a bad key prints a traceback": ("integration/test_cli_errors.py::test_a_missing_key_is_named",),
    "--json that isn't JSON": ("integration/test_cli_run.py::test_json_is_one_document_and_nothing_else_on_stdout",),
    "data that looks like markup crashes the renderer": (
        "integration/test_cli_look.py::test_what_looks_like_markup_or_drives_a_terminal_is_printed_as_it_is",
        "unit/test_handlers_cli.py::test_data_can_neither_be_markup_nor_steer_the_terminal",
    ),
    "settings become strings": ("unit/test_config.py::test_every_variable_becomes_a_typed_value",),
    "a tilde becomes a folder": ("unit/test_config.py::test_a_tilde_is_the_home_folder_everywhere",),
    "seconds of start-up for --help": (
        "integration/test_cli_look.py::test_help_and_import_load_nothing_heavy",
    ),
}  # fmt: skip


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return frozenset(node.name for node in functions)


@pytest.mark.parametrize("pitfall", PITFALLS)
def test_each_pitfall_has_its_tests(pitfall: str) -> None:
    for test in PITFALLS[pitfall]:
        file, name = test.split("::")
        assert name in names_in(file), f"{pitfall}: there is no {test}"


async def test_a_tool_that_an_agent_was_not_given_is_refused_and_on_record() -> None:
    async def look() -> None: ...

    async def transfer(amount: int) -> None:
        raise AssertionError("reached")

    storage = InMemoryStorage()
    executor = ToolExecutor(ToolRegistry([look, transfer]), storage)
    given = Toolset.of([look])
    context = RunContext("run", "session", "tenant", agent="reader")
    with entered(context), using(executor), pytest.raises(UnknownToolError, match="this agent was given"):
        await given.call("transfer", {"amount": 5})
    (record,) = await storage.read(EVENTS)
    assert (record.data["tool_name"], record.data["outcome"]) == ("transfer", "invalid")
    assert (record.data["agent_name"], record.data["inputs"]) == ("reader", {"amount": 5})
