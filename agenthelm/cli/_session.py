"""Opens what the settings name: storage, memory, model, approvals, and the orchestrator over them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agenthelm.config import Settings, load_settings
from agenthelm.exceptions import AgentLoadError, ConfigError, StorageError, nearest

if TYPE_CHECKING:
    from agenthelm.agent import AgentRegistry, Runnable
    from agenthelm.core.cost import Budget
    from agenthelm.core.handlers import ApprovalHandler
    from agenthelm.core.storage.base import BaseStorage
    from agenthelm.memory import MemoryHub

__all__ = [
    "absent_stores",
    "agent_names",
    "apply_pricing",
    "approval_handler",
    "budget_from",
    "check_inputs",
    "choose_agents",
    "input_texts",
    "load_app",
    "meant",
    "memory_paths",
    "model_for",
    "open_hub",
    "open_orchestrator",
    "open_storage",
    "parse_inputs",
    "settings_from",
    "storage_path",
    "stored",
    "telemetry",
    "without_new_stores",
]


def settings_from(**arguments: object) -> Settings:
    """The settings of one call, with what was said on its command line."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working directory is gone; change to another one") from None
    return load_settings(arguments)


def ensure_home(settings: Settings) -> None:
    """Make the folder that holds everything, for its owner only; one that is there stays as it is.

    Raises:
        StorageError: It can't be made or written.
    """
    home = settings.home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(
            f"can't make the folder {home}: {exc.strerror or exc}; choose another one with AGENTHELM_HOME or `home`"
        ) from exc
    if not os.access(home, os.W_OK | os.X_OK):
        raise StorageError(f"can't write to {home}; choose another folder with AGENTHELM_HOME or `home`")


def _inside_home(settings: Settings, location: str) -> bool:
    return Path(location.removeprefix("sqlite:///")).is_relative_to(settings.home)


def storage_path(settings: Settings) -> Path | None:
    """The file of the storage that the settings name; None for one in memory.

    Raises:
        ConfigError: They name no storage that there is.
    """
    location = settings.storage
    if location.startswith("memory:"):
        return None
    path = location.removeprefix("sqlite:///").removeprefix("json:///")
    if not path:
        raise ConfigError(f"storage {location!r} names no file", setting="storage")
    if "://" in path:
        raise ConfigError(
            f"storage {location!r} is neither a path nor sqlite:///, json:/// or memory://", setting="storage"
        )
    return Path(path)


def open_storage(settings: Settings) -> BaseStorage:
    """The storage that the settings name, to be closed at the end; its file is made on first use."""
    path = storage_path(settings)
    if path is None:
        from agenthelm.core.storage import InMemoryStorage

        return InMemoryStorage()
    # Looking at one that is there takes no leave to write.
    if _inside_home(settings, str(path)) and not _is_there(path):
        ensure_home(settings)
    scheme = settings.storage.partition(":///")[0]
    if scheme == "json" or (scheme != "sqlite" and path.suffix in (".json", ".jsonl")):
        from agenthelm.core.storage import JsonStorage

        return JsonStorage(path)
    from agenthelm.core.storage import SqliteStorage

    return SqliteStorage(path)


def stored(settings: Settings) -> bool:
    """Whether there is anything to read yet: looking must not make files."""
    path = storage_path(settings)
    try:
        return path is not None and _is_there(path)
    except OSError as exc:
        raise ConfigError(f"can't open {path}: {exc.strerror or exc}", setting="storage") from exc


def _is_there(path: Path) -> bool:
    """Whether a file or a folder is there. What nobody may look at is not absent, as `Path.exists` has it on Python 3.14.

    Raises:
        OSError: The system does not say.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def open_hub(settings: Settings, *, quiet: bool = False) -> MemoryHub:
    """The memory hub that the settings name, to be closed at the end.

    It connects on first use, and tells of downloads unless it is quiet.
    """
    from agenthelm.memory import MemoryHub
    from agenthelm.memory.embedders import MINILM, EmbedderLike, MiniLM

    if any(_inside_home(settings, place) for place in absent_stores(settings).values()):
        ensure_home(settings)  # writing to what is there is up to the store
    embedder: EmbedderLike = settings.embedder
    if embedder == MINILM and not quiet:
        from agenthelm.cli._download import told

        embedder = MiniLM(told("the embedder all-MiniLM-L6-v2"))
    return MemoryHub(short_term=settings.memory_url, semantic=settings.vectors, embedder=embedder)


def memory_paths(settings: Settings) -> dict[str, Path]:
    """Where on the disk the memories are, by the names that `MemoryHub.health` gives them; not those elsewhere."""
    paths = {}
    if settings.memory_url.startswith("sqlite:///"):
        paths["short_term"] = Path(settings.memory_url.removeprefix("sqlite:///"))
    if "://" not in settings.vectors:
        paths["semantic"] = Path(settings.vectors)
    return paths


def absent_stores(settings: Settings) -> dict[str, str]:
    """The places, as the settings have them, of the memories on the disk that aren't there yet."""
    places = {"short_term": settings.memory_url, "semantic": settings.vectors}
    return {name: places[name] for name, path in memory_paths(settings).items() if not _is_there(path)}


def without_new_stores(settings: Settings) -> Settings:
    """The settings for a look at the memories, which makes no files: what isn't there yet is empty."""
    absent = absent_stores(settings)
    return replace(
        settings,
        memory_url="memory://" if "short_term" in absent else settings.memory_url,
        vectors="memory://" if "semantic" in absent else settings.vectors,
    )


def approval_handler(settings: Settings, *, prompt: Callable[[ApprovalHandler], ApprovalHandler]) -> ApprovalHandler:
    """Who answers approval requests; ``prompt`` wraps whoever talks to the terminal."""
    from agenthelm.core import handlers

    match settings.approve:
        case "ask":
            return prompt(handlers.CliHandler())
        case "allow":
            return handlers.AutoApprove()
        case "deny":
            return handlers.AutoDeny("everything is denied (--approve deny)")
        case path:
            return handlers.PolicyHandler.from_toml(path, ask=prompt(handlers.CliHandler()))


def load_app(settings: Settings) -> tuple[AgentRegistry, list[str]]:
    """The registry of agents with the app's agents in it, and the names that came with the app.

    The app's tools register themselves; it may hold nothing else.

    Args:
        settings: Names the app.

    Raises:
        AgentLoadError: The app can't be loaded; it names the file and line that raised.
    """
    import anyio

    from agenthelm._runtime.workers import on_event_loop
    from agenthelm.cli._loop import interruptible

    loaded = interruptible()(_loaded)  # importing takes its time, and some apps for ever
    if on_event_loop():
        return loaded(settings)

    async def inside() -> tuple[AgentRegistry, list[str]]:
        return loaded(settings)

    # A program that runs itself when it is imported is refused by every command, not performed by some of them.
    return anyio.run(inside)


def _loaded(settings: Settings) -> tuple[AgentRegistry, list[str]]:
    from agenthelm.agent.registry import AGENT_REGISTRY
    from agenthelm.core.tool import TOOL_REGISTRY

    if settings.app is None:
        return AGENT_REGISTRY, []
    known = len(TOOL_REGISTRY)
    try:
        return AGENT_REGISTRY, [agent.name for agent in AGENT_REGISTRY.load(settings.app)]
    except AgentLoadError as error:
        if not (error.empty and len(TOOL_REGISTRY) > known):
            raise
        return AGENT_REGISTRY, []


def choose_agents(settings: Settings, names: Sequence[str]) -> list[Runnable]:
    """The agents of a run; an app with a single agent needs no name.

    Raises:
        UnknownAgentError: With the nearest names.
        ConfigError: No name was given and there is no single candidate.
    """
    registry, own = load_app(settings)
    wanted = [name.strip() for part in names for name in part.split(",") if name.strip()]
    if not wanted:
        if len(own) != 1:
            known = ", ".join(own or sorted(registry))
            raise ConfigError(f"say which agents to run: --agents NAME[,NAME…]; there are: {known}", setting="agents")
        wanted = own
    return [registry[name] for name in wanted]


def agent_names() -> list[str]:
    """The names that the shell completes: the app's agents and the built-in ones; none when the app can't be loaded."""
    try:
        return sorted(load_app(load_settings())[0])
    except Exception:  # noqa: BLE001 - a shell that is completing a word must not see a traceback
        return []


def model_for(settings: Settings) -> Any:
    """The language model, said aloud when it was picked by key alone.

    Raises:
        ModelNotConfiguredError: Neither a model nor a key is there; three lines say what to do.
    """
    from agenthelm.agent.models import KEYS, detect_model, resolve_model
    from agenthelm.cli._console import note

    lm = resolve_model(settings.model, api_base=settings.api_base, timeout=settings.lm_timeout)
    if settings.model is None:
        picked = str(detect_model())
        note(f"model {picked}, picked by {KEYS.get(picked.partition('/')[0], 'its key')}; --model takes another one")
    return lm


@contextmanager
def telemetry(settings: Settings) -> Iterator[None]:
    """Export spans for a ``with`` block, and flush them at its end however it ends, a second Ctrl-C included."""
    if settings.trace is None:
        yield
        return
    from agenthelm.cli._loop import watch
    from agenthelm.tracing.setup import configure

    with configure(settings.trace) as exported:
        watch().deliver = exported.shutdown
        yield


def apply_pricing(settings: Settings) -> None:
    """Let the configured prices override the bundled ones."""
    if settings.pricing:
        from agenthelm.core.cost import MODEL_PRICING

        MODEL_PRICING.update({model: dict(price) for model, price in settings.pricing.items()})


@asynccontextmanager
async def open_orchestrator(
    settings: Settings,
    *,
    lm: object = None,
    budget: Budget | None = None,
    prompt: Callable[[ApprovalHandler], ApprovalHandler] = lambda handler: handler,
    observer: Callable[[Any], None] | None = None,
    memory: bool = True,
    quiet: bool = False,
    **options: Any,
) -> AsyncIterator[Any]:
    """The orchestrator over everything that the settings name, closed at the end; Ctrl-C twice flushes its journal."""
    from agenthelm.cli._loop import watch
    from agenthelm.orchestration.orchestrator import Orchestrator

    apply_pricing(settings)
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_storage(settings))
        watch().flush = storage.aclose
        hub = await stack.enter_async_context(open_hub(settings, quiet=quiet)) if memory else None
        yield await stack.enter_async_context(
            Orchestrator(
                hub,
                lm=lm,
                storage=storage,
                approval_handler=approval_handler(settings, prompt=prompt),
                budget=budget or budget_from(settings),
                workers=settings.workers,
                unpriced=settings.unpriced,
                lm_timeout=settings.lm_timeout,
                observer=observer,
                **options,
            )
        )


def budget_from(settings: Settings, *, tokens: int | None = None, calls: int | None = None) -> Budget | None:
    """The budget of one run; None when nothing limits it."""
    if settings.budget_usd is None and tokens is None and calls is None:
        return None
    from agenthelm.core.cost import Budget

    return Budget(usd=settings.budget_usd, tokens=tokens, calls=calls)


def input_texts(pairs: list[str]) -> dict[str, str]:
    """``key=value`` pairs.

    Raises:
        ConfigError: One without ``=``, or an input a second time.
    """
    inputs: dict[str, str] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        name = key.strip()
        if not separator or not name:
            raise ConfigError(f"--input takes key=value, not {pair!r}", setting="input")
        if name in inputs:
            raise ConfigError(f"--input {name} is given twice", setting="input")
        inputs[name] = text
    return inputs


def meant(text: str) -> object:
    """What a text stands for: what JSON says, if it is JSON, else itself."""
    import json

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)  # NaN and Infinity are none of JSON's, but Python's
    except (ValueError, RecursionError):
        return text


def parse_inputs(pairs: list[str], agents: Sequence[Any]) -> Mapping[str, object]:
    """``key=value`` pairs; a value that is valid JSON means what JSON says, anything else is text.

    Where those agents that take it want a text, it is one that only looks like JSON.

    Raises:
        ConfigError: A pair without ``=``, or an input or the task a second time.
    """
    signatures = [agent.get_signature() for agent in agents]
    inputs: dict[str, object] = {}
    for name, text in input_texts(pairs).items():
        if name == "task":
            raise ConfigError("the task is given as TASK; --input is for further inputs", setting="input")
        value = meant(text)
        wanted = [signature.inputs[name].type for signature in signatures if name in signature.inputs]
        inputs[name] = text if wanted and not isinstance(value, str) and all(kind is str for kind in wanted) else value
    return inputs


def check_inputs(agents: Sequence[Any], inputs: Mapping[str, object]) -> None:
    """Refuse an input that no agent takes: a flow would carry it along unseen.

    Raises:
        ConfigError: With the nearest names.
    """
    signatures = [agent.get_signature() for agent in agents]
    known = {name for signature in signatures for name in signature.inputs}
    for name in inputs:
        if name not in known and not any(signature.open_inputs for signature in signatures):
            raise ConfigError(
                f"none of these agents takes an input {name!r}.{nearest(name, known)} They take: {', '.join(sorted(known))}.",
                setting="input",
            )
