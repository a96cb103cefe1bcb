"""No read, listing, search or deletion ever crosses a session or a namespace, whatever their names, on any store.

Each example draws namespaces and sessions from hostile names, and a sequence of operations. The same sequence runs
against plain dictionaries that can't leak; what the memory answers must be what they answer.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agenthelm.memory import MemoryContext, MemoryHub
from agenthelm.testing.memory import HOSTILE
from tests.support.chroma_server import shared_chroma
from tests.support.redis_server import shared_redis

STORES = {
    "memory": ("memory://", "memory://"),
    "sqlite and a Chroma folder": ("sqlite:///{folder}/memory.db", "{folder}/vectors"),
    "redis and a Chroma server": ("{redis}", "{chroma}"),
    "sqlite and Chroma in process": ("sqlite:///{folder}/memory.db", "ephemeral://"),
}
COUNTS: dict[str, int] = {}

# By their number: Hypothesis prints strategies now and then, and some of these names are 10 kB.
HOSTILE_NAMES = st.integers(0, len(HOSTILE) - 1).map(lambda number: HOSTILE[number])
NAMES = st.one_of(HOSTILE_NAMES, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
# Few different names per example, and pairs that meet if parts are joined carelessly.
PLACES = st.lists(
    st.one_of(
        st.tuples(NAMES, NAMES),
        st.sampled_from(
            [("a", "b:c"), ("a:b", "c"), ("a", "b"), ("a:", "b"), ("a", ":b"), ("%", "3A"), ("*", "*"), ("s", "n")]
        ),
    ),
    min_size=2,
    max_size=4,
    unique=True,
)
STEP = st.tuples(
    st.sampled_from(
        ["write", "write", "read", "delete", "list", "clear", "set_shared", "get_shared", "delete_shared", "list_shared",
         "incr", "remember", "remember", "search", "mine", "forget", "count"]
    ),
    st.integers(0, 3),
    st.one_of(st.sampled_from(["k", "k:1", "*", "k*", ":"]), st.sampled_from(HOSTILE[:20])),
)  # fmt: skip


class Model:
    """What one honest dictionary per scope would do."""

    def __init__(self) -> None:
        self.own: dict[tuple[str, str], dict[str, Any]] = {}
        self.shared: dict[str, dict[str, Any]] = {}
        self.texts: dict[str, dict[str, tuple[str, str]]] = {}

    def apply(self, step: str, namespace: str, session: str, key: str, value: int) -> Any:
        own = self.own.setdefault((namespace, session), {})
        shared = self.shared.setdefault(namespace, {})
        texts = self.texts.setdefault(namespace, {})
        match step:
            case "write":
                own[key] = value
                return None
            case "read":
                return own.get(key)
            case "delete":
                return own.pop(key, None) is not None
            case "list":
                return sorted(name for name in own if name.startswith(key[:1]))
            case "clear":
                count = len(own)
                own.clear()
                return count
            case "set_shared":
                shared[key] = value
                return None
            case "get_shared":
                return shared.get(key)
            case "delete_shared":
                return shared.pop(key, None) is not None
            case "list_shared":
                return sorted(name for name in shared if name.startswith(key[:1]))
            case "incr":
                shared[f"n{key}"] = shared.get(f"n{key}", 0) + value
                return shared[f"n{key}"]
            case "remember":
                texts[key] = (f"note {value}", session)
                return key
            case "search":
                return sorted((name, text) for name, (text, _) in texts.items())
            case "mine":
                return sorted((name, text) for name, (text, by) in texts.items() if by == session)
            case "forget":
                return texts.pop(key, None) is not None
            case _:
                return len(texts)


async def perform(context: MemoryContext, step: str, key: str, value: int) -> Any:
    match step:
        case "write":
            return await context.write(key, value)
        case "read":
            return await context.read(key)
        case "delete":
            return await context.delete(key)
        case "list":
            return await context.list_keys(key[:1])
        case "clear":
            return await context.clear()
        case "set_shared":
            return await context.set_shared(key, value)
        case "get_shared":
            return await context.get_shared(key)
        case "delete_shared":
            return await context.delete_shared(key)
        case "list_shared":
            return await context.list_shared(key[:1])
        case "incr":
            return await context.incr_shared(f"n{key}", value)
        case "remember":
            return await context.remember(f"note {value}", id=key)
        case "search" | "mine":
            found = await context.search("note", 50, this_session=step == "mine")
            return sorted((match.id, match.text) for match in found)
        case "forget":
            return await context.forget(key)
        case _:
            return await context.count()


def _hub(store: str, folder: Path) -> MemoryHub:
    short_term, semantic = STORES[store]
    known = {"folder": folder}
    if "redis" in store:
        known |= {"redis": shared_redis().url, "chroma": shared_chroma().url}
    return MemoryHub(short_term.format(**known), semantic.format(**known), embedder="lexical")


@asynccontextmanager
async def _opened(store: str, folder: Path) -> AsyncIterator[MemoryHub]:
    async with _hub(store, folder) as hub:
        yield hub


def _each_scope_is_alone(store: str, folder: Path, *, examples: int) -> None:
    backends = itertools.cycle(["asyncio", "trio"])
    COUNTS[store] = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(places=PLACES, steps=st.lists(STEP, min_size=10, max_size=40))
    def check(places: list[tuple[str, str]], steps: list[tuple[str, int, str]]) -> None:
        unique = secrets.token_hex(6)  # a namespace of its own per example: the stores are shared by all of them

        async def go() -> None:
            async with _opened(store, folder) as hub:
                model = Model()
                contexts = [hub.create_context(session, unique + namespace) for namespace, session in places]
                for value, (step, who, key) in enumerate(steps):
                    context = contexts[who % len(contexts)]
                    wanted = model.apply(step, context.namespace, context.session_id, key, value)
                    assert await perform(context, step, key, value) == wanted, (step, context, key)
                for context in contexts:
                    for step in ("list", "list_shared", "search", "mine", "count"):
                        wanted = model.apply(step, context.namespace, context.session_id, "", 0)
                        assert await perform(context, step, "", 0) == wanted, (step, context)
                    COUNTS[store] += 5
                COUNTS[store] += len(steps)

        anyio.run(go, backend=next(backends))

    check()
    print(f"{store}: {examples} cases, {COUNTS[store]} operations compared")


@pytest.mark.parametrize("store", STORES)
def test_answers_as_if_each_scope_had_a_store_of_its_own(store: str, tmp_path: Path) -> None:
    _each_scope_is_alone(store, tmp_path, examples=40 if store == "memory" else 12)


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_answers_as_if_each_scope_had_a_store_of_its_own_in_many_cases(store: str, tmp_path: Path) -> None:
    _each_scope_is_alone(store, tmp_path, examples=80 if "server" in store else 250)


@pytest.mark.parametrize("store", STORES)
async def test_hostile_names_of_namespaces_and_sessions_never_meet(store: str, tmp_path: Path) -> None:
    unique = secrets.token_hex(6)
    names = [name for name in HOSTILE if len(name) < 200]
    async with _opened(store, tmp_path) as hub:
        contexts = [hub.create_context(name, unique + "n") for name in names]
        contexts += [hub.create_context("s", unique + name) for name in names]
        for n, context in enumerate(contexts):
            await context.write_many({"who": n, context.session_id: n})
        for n, context in enumerate(contexts):
            assert await context.read_many(["who", context.session_id, "other"]) == {"who": n, context.session_id: n}
            assert await context.list_keys() == sorted({"who", context.session_id})
        await contexts[names.index("*")].clear()
        left = [n for n, context in enumerate(contexts) if await context.read("who") is not None]
        assert left == [n for n in range(len(contexts)) if n != names.index("*")]
        sessions = await hub.sessions(unique + "n")
        assert set(sessions) == {name for name in names if name != "*"}
