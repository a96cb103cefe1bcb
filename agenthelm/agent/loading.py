"""Finding agents in a module or a file of the user's."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from agenthelm.agent.base import Agent
from agenthelm.agent.signature import Runnable
from agenthelm.core.process import module_of_file
from agenthelm.exceptions import AgentLoadError, nearest
from agenthelm.telling import describe

__all__ = ["is_runnable", "load_agents"]


def load_agents(target: str, registered: Callable[[], Collection[Runnable]] = tuple) -> list[Runnable]:
    """The agents and flows that a module or a file defines.

    Args:
        target: ``"package.module"``, ``"file.py"``, or either with ``":attribute"``. Without an attribute: the instances
            at module level, and the agent classes defined there that need no arguments and have no instance. The
            attribute may be an agent, a flow, a class, a list of these, or a function without arguments that makes them.
        registered: The agents that registries hold; those that the module registers itself are found as well.

    Raises:
        AgentLoadError: It can't be found, it raised (with its file and line), or there are no agents in it.
    """
    place, attribute = _split(target)
    before = list(registered())
    module = _load_file(place, target) if place.endswith(".py") else _load_module(place, target)
    own = [agent for agent in registered() if not _among(agent, before) or type(agent).__module__ == module.__name__]
    if attribute:
        found = list(_instances(_resolve(module, attribute, target), _held(module, own), module=module, target=target))
    else:
        found = _at_module_level(module, target, own)
    if not found:
        raise AgentLoadError(
            f"{target} holds no agents; define a subclass of agenthelm.Agent, or an instance of one, at module level",
            target=target,
            empty=not attribute,
        )
    return found


def _split(target: str) -> tuple[str, str]:
    place, colon, attribute = target.strip().rpartition(":")
    if not colon or "/" in attribute or "\\" in attribute:  # no attribute; the colon of a drive letter is none either
        return target.strip(), ""
    return place, attribute


def _load_file(place: str, target: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise AgentLoadError(f"there is no file {place}", target=target, file=str(path))
    # The same file is the same module however often it is named: executing it twice would register its tools twice.
    name = f"agenthelm_app_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if (known := sys.modules.get(name) or _imported(path)) is not None:
        return known
    _importable(path.parent)
    try:
        module = module_of_file(name, path)
    except (Exception, SystemExit) as error:
        raise _broken(error, target, path) from error
    if module is None:
        raise AgentLoadError(f"{place} is not a Python file", target=target, file=str(path))
    return module


def _imported(path: Path) -> ModuleType | None:
    """The module that the program has made of a file by itself, if it has."""
    for module in list(sys.modules.values()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None  # lazy ones import when asked
        if isinstance(file, str) and file.endswith(path.name) and Path(file).resolve() == path:
            return module
    return None


def _load_module(place: str, target: str) -> ModuleType:
    if not place or not all(part.isidentifier() for part in place.split(".")):
        raise AgentLoadError(
            f"{target!r} is neither a file nor a module; write 'file.py', 'package.module' or 'package.module:agent'",
            target=target,
        )
    _importable(Path.cwd())
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
            raise AgentLoadError(
                f"there is no module {error.name!r} here or among the installed packages", target=target
            ) from None
        raise _broken(error, target, None) from error


def _importable(folder: Path) -> None:
    """Let an app import what lies beside it, as ``python file.py`` would."""
    present = str(folder) in sys.path or ("" in sys.path and folder == Path.cwd())
    if not present:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _broken(error: BaseException, target: str, path: Path | None) -> AgentLoadError:
    """The error for code of the user's that raised: where, in the innermost line that is the user's."""
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
        what = f"SyntaxError: {error.msg}"
    else:
        frames = [
            (frame.filename, frame.lineno)
            for frame in traceback.extract_tb(error.__traceback__)
            if "importlib" not in frame.filename and frame.filename not in _LOADERS
        ]
        own = [frame for frame in frames if path is not None and frame[0] == str(path)]
        users = [frame for frame in frames if "site-packages" not in frame[0] and not frame[0].startswith(_PACKAGE)]
        file, line = (own or users or frames or [("", None)])[-1]
        what = describe(error)
        if isinstance(error, RuntimeError) and any(words in what for words in _LOOP_IN_LOOP):
            what += "; what runs the program belongs under: if __name__ == '__main__':"
    where = f"{file}:{line}" if file else target
    return AgentLoadError(f"{target} could not be loaded: {where}: {what}", target=target, file=file or None, line=line)


_LOOP_IN_LOOP = ("Already running", "running event loop", "another loop is running", "inside a run")
"""What anyio, asyncio and trio say to a program that starts an event loop while it is imported in one."""

_LOADERS = (__file__, module_of_file.__code__.co_filename)

_PACKAGE = str(Path(__file__).resolve().parents[1])


def _resolve(module: ModuleType, attribute: str, target: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            known = [name for name in vars(value) if not name.startswith("_")] if hasattr(value, "__dict__") else []
            raise AgentLoadError(f"{target}: there is no {part!r}.{nearest(part, known)}", target=target) from None
    return value


def _instances(value: Any, held: list[Runnable], *, module: ModuleType, target: str) -> Iterator[Runnable]:
    """What a named attribute stands for; a class stands for the instance of its name that is held already."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _instances(item, held, module=module, target=target)
    elif is_runnable(value):
        yield value
    elif inspect.isclass(value) or inspect.isfunction(value):
        made = _make(value, module, target)
        if not isinstance(made, (list, tuple)) and not is_runnable(made):
            raise AgentLoadError(f"{target} made a {type(made).__name__}, which is no agent", target=target)
        if inspect.isclass(value):
            made = next((agent for agent in held if type(agent) is value and agent.name == made.name), made)
        yield from _instances(made, held, module=module, target=target)
    else:
        raise AgentLoadError(f"{target} is no agent but of type {type(value).__name__}", target=target)


def _among(agent: Runnable, agents: Collection[Runnable]) -> bool:
    return any(agent is other for other in agents)


def _public(module: ModuleType) -> list[Any]:
    return [value for name, value in vars(module).items() if not name.startswith("_")]


def _held(module: ModuleType, registered: Collection[Runnable]) -> list[Runnable]:
    """The instances at module level, and those that the module has registered."""
    found: list[Runnable] = []
    for value in [*_public(module), *registered]:
        if is_runnable(value) and not _among(value, found):
            found.append(value)
    return found


def _at_module_level(module: ModuleType, target: str, registered: Collection[Runnable]) -> list[Runnable]:
    found = _held(module, registered)
    present = {type(value) for value in found}
    for value in _public(module):
        if (
            inspect.isclass(value)
            and issubclass(value, Agent)
            and value.__module__ == module.__name__
            and value not in present
            and not _required_arguments(value)
            and not inspect.isabstract(value)
            and not _is_base(value)
        ):
            present.add(value)
            found.append(_make(value, module, target))
    return found


def _is_base(kind: type[Agent]) -> bool:
    """Whether a class only serves as the base of others: it has nothing to do by itself."""
    return not kind._overridden and getattr(kind, "Signature", None) is None and "__init__" not in vars(kind)


def is_runnable(value: Any) -> bool:
    """Whether something is an agent or a flow: it has a name, a signature, and can be run."""
    return (
        not inspect.isclass(value)
        and isinstance(getattr(value, "name", None), str)
        and inspect.iscoroutinefunction(getattr(value, "run", None))
        and callable(getattr(value, "get_signature", None))
    )


def _make(factory: Any, module: ModuleType, target: str) -> Any:
    needs = _required_arguments(factory)
    if needs:
        raise AgentLoadError(
            f"{target}: {factory.__name__} needs {', '.join(needs)}; make an instance at module level", target=target
        )
    made: dict[Any, Any] = vars(module).setdefault("__agenthelm_made__", {})
    if factory in made:  # loading a file again finds the same agents
        return made[factory]
    try:
        return made.setdefault(factory, factory())
    except Exception as error:
        path = getattr(module, "__file__", None)
        raise _broken(error, target, Path(path) if path else None) from error


def _required_arguments(factory: Any) -> list[str]:
    function = factory.__init__ if inspect.isclass(factory) else factory
    parameters = list(inspect.signature(function).parameters.values())
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter.name
        for parameter in (parameters[1:] if inspect.isclass(factory) else parameters)
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
    ]
