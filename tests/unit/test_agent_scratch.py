"""The scratch pad stands in for every method of a memory context."""

from __future__ import annotations

import inspect

from agenthelm.agent.scratch import AsyncScratch, Scratch
from agenthelm.memory.context import MemoryContext
from agenthelm.memory.sync_context import SyncMemoryContext


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_it_has_every_method_of_a_memory_context_with_the_same_first_parameters() -> None:
    assert public(SyncMemoryContext) <= public(Scratch)
    assert public(MemoryContext) <= public(Scratch) | public(AsyncScratch)
    for name in public(SyncMemoryContext):
        method = getattr(SyncMemoryContext, name)
        if not callable(method):
            continue
        wanted, there = inspect.signature(method).parameters, inspect.signature(getattr(Scratch, name)).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in there.values())
        assert takes_any or list(wanted) == list(there), name


def test_it_keeps_what_one_call_writes() -> None:
    pad = Scratch()
    pad.write("a", 1)
    pad.write_many({"ab": 2, "b": 3})
    assert (pad.read("a"), pad.read("x", "none"), pad.read_many(["a", "b", "x"])) == (1, "none", {"a": 1, "b": 3})
    assert pad.list_keys("a") == ["a", "ab"]
    assert (pad.delete("a"), pad.delete("a"), pad.clear(), pad.list_keys()) == (True, False, 2, [])


def test_it_keeps_shared_values_too() -> None:
    pad = Scratch()
    pad.set_shared("n", 1)
    assert pad.incr_shared("n", 2) == pad.get_shared("n") == 3
    assert (pad.compare_and_set_shared("n", 1, 9), pad.compare_and_set_shared("n", 3, 9)) == (False, True)
    assert (pad.list_shared(), pad.delete_shared("n"), pad.get_shared("n", 0)) == (["n"], True, 0)


def test_it_recalls_nothing() -> None:
    pad = Scratch()
    assert pad.remember("text", {"a": 1}, id="mine") == "mine"
    assert pad.remember("text") != pad.remember("text")
    assert (pad.recall("text", top_k=3), pad.search("text"), pad.forget("mine"), pad.count()) == ([], [], False, 0)


async def test_its_async_face_is_awaited_and_shares_the_pad() -> None:
    pad = AsyncScratch()
    await pad.write("a", 1)
    assert await pad.read("a") == pad.sync().read("a") == 1
    assert not hasattr(pad, "no_such_method")
