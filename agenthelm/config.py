"""Every setting, where it may come from, and what it is when nobody says: frozen, and read at the edges only.

Arguments win over the environment, the environment over the file, the file over the defaults. The file is
``agenthelm.toml`` in the working directory, or else the table ``[tool.agenthelm]`` of its ``pyproject.toml``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from agenthelm.exceptions import ConfigError, nearest

__all__ = ["Settings", "load_settings"]

CONFIG_FILE = "agenthelm.toml"
ENVIRONMENT_PREFIX = "AGENTHELM_"
_TABLE = "agenthelm"
_ALIASES = {"NEXUS_TRACE": "trace"}
_OUR_TABLE = re.compile(rb"tool\s*\.\s*[\"']?agenthelm")

Unpriced = Literal["warn", "deny", "allow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line runs with.

    Attributes:
        model: The language model, as DSPy names it (``"openai/gpt-4o-mini"``), or ``"offline"``; None picks by key.
        api_base: Base URL of an endpoint that speaks the OpenAI protocol, for local servers.
        home: The folder for everything the command line keeps; made with mode 0700 when first needed.
        storage: Events and journals: a path (``.db`` is SQLite, ``.jsonl`` JSON Lines), ``sqlite:///file``,
            ``json:///file`` or ``memory://``. Default: ``{home}/agenthelm.db``.
        memory_url: Short-term memory: ``redis://``, ``rediss://``, ``unix://``, ``sqlite:///file`` or ``memory://``.
            Default: ``sqlite:///{home}/memory.db``.
        vectors: Semantic memory: a folder, the ``http://`` or ``https://`` address of a Chroma server, or
            ``memory://``. Default: ``{home}/vectors``.
        embedder: ``"auto"``, ``"lexical"``, ``"minilm"``, or an embedding model's name.
        budget_usd: The budget of each run in USD; None for no limit, which ``inf`` stands for in its sources.
        approve: Who answers approval requests: ``"ask"``, ``"allow"``, ``"deny"``, or the path of a policy file.
        trace: Where spans go: ``"console"``, ``"otlp"``, or the path of a JSON Lines file; None for nowhere.
        app: The module or file that defines agents and tools, as ``--app`` takes it.
        lm_timeout: The deadline of one LM call in seconds.
        unpriced: What to do about models without a known price: ``"warn"``, ``"deny"`` or ``"allow"``.
        workers: How many worker threads sync tools and sync agents may use, per nesting depth.
        pricing: Prices that override the bundled ones: model -> ``{"input": usd, "output": usd}`` per 1K tokens.
        sources: Where each setting came from that is not a default; for people, not for programs.
    """

    model: str | None = None
    api_base: str | None = None
    home: Path = Path(".agenthelm")
    storage: str = ""
    memory_url: str = ""
    vectors: str = ""
    embedder: str = "auto"
    budget_usd: float | None = None
    approve: str = "ask"
    trace: str | None = None
    app: str | None = None
    lm_timeout: float = 120.0
    unpriced: Unpriced = "warn"
    workers: int = 64
    pricing: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: MappingProxyType({}))
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def __post_init__(self) -> None:
        for name, inside in (("storage", "agenthelm.db"), ("vectors", "vectors")):
            if not getattr(self, name):
                object.__setattr__(self, name, str(self.home / inside))
        if not self.memory_url:
            object.__setattr__(self, "memory_url", f"sqlite:///{self.home / 'memory.db'}")


def load_settings(
    arguments: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Bring the settings together from all their sources.

    Args:
        arguments: What was said on the command line; None values were not said.
        environment: Instead of the process's environment.
        folder: Where to look for the file, instead of the working directory.

    Raises:
        ConfigError: An unknown setting or a value that makes no sense, with the place it stands in.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    layers = (
        _from_file(folder or Path()),
        _from_environment(os.environ if environment is None else environment),
        [(name, value, f"the command line: {name}") for name, value in (arguments or {}).items() if value is not None],
    )
    for layer in layers:
        for name, value, source in layer:
            values[name] = _checked(name, value, source)
            sources[name] = source
    return Settings(**values, sources=MappingProxyType(sources))


_Entry = tuple[str, object, str]


def _from_file(folder: Path) -> list[_Entry]:
    for path, table in ((folder / CONFIG_FILE, ()), (folder / "pyproject.toml", ("tool", _TABLE))):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise ConfigError(f"can't read {path.name}: {exc.strerror or exc}") from exc
        document = _parsed(path.name, text, ours=not table)
        _refuse_elsewhere(path.name, document, ours=not table)
        for key in table:
            document = document.get(key, {}) if isinstance(document, dict) else {}
        where = path.name if not table else f"{path.name} [{'.'.join(table)}]"
        if not isinstance(document, dict):
            raise ConfigError(f"{where} must be a table of settings")
        if document or not table:
            return [(key, value, f"{where}: {key}") for key, value in document.items()]
    return []


def _parsed(name: str, text: bytes, *, ours: bool) -> Any:
    import tomllib  # most calls of the command line find no file, and start sooner without it

    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        if ours or _OUR_TABLE.search(text):
            raise ConfigError(f"{name} is not valid TOML: {exc}") from exc
        return {}  # somebody else's file: not ours to judge


def _refuse_elsewhere(name: str, document: Mapping[str, Any], *, ours: bool) -> None:
    """Refuse settings that stand where only the other file has them: nobody would read them."""
    tools = document.get("tool")
    if ours and isinstance(tools, Mapping) and _TABLE in tools:
        raise ConfigError(
            f"{name} holds its settings at the top: take the line [tool.{_TABLE}] out, which is for pyproject.toml",
            setting=_TABLE,
        )
    if isinstance(document.get(_TABLE), Mapping):
        where = "at the top" if ours else f"under [tool.{_TABLE}]"
        raise ConfigError(f"{name} holds our settings {where}, not under [{_TABLE}]", setting=_TABLE)
    for key, value in document.items():
        if not ours and key in _READERS and not isinstance(value, Mapping | list):
            raise ConfigError(
                f"{name} holds our settings under [tool.{_TABLE}]; {key} stands outside of it", setting=key
            )


def _from_environment(environment: Mapping[str, str]) -> list[_Entry]:
    entries: list[_Entry] = [
        (name, _Text(environment[alias]), alias) for alias, name in _ALIASES.items() if environment.get(alias)
    ]
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and text:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if name not in _READERS or name == "pricing":
                known = [ENVIRONMENT_PREFIX + setting.upper() for setting in _READERS if setting != "pricing"]
                hint = nearest(variable, known, prefix=ENVIRONMENT_PREFIX)
                raise ConfigError(f"unknown setting {variable} in the environment.{hint}", setting=variable)
            entries.append((name, _Text(text), variable))
    return entries


class _Text(str):
    """A value from the environment, where everything is text and has to be read as what it means."""

    __slots__ = ()


def _checked(name: str, value: object, source: str) -> object:
    reader = _READERS.get(name)
    if reader is None:
        raise ConfigError(f"unknown setting {name!r} in {source.split(':')[0]}.{nearest(name, _READERS)}", setting=name)
    try:
        return reader(value)
    except _PriceError as exc:
        raise ConfigError(f"{source}{exc}", setting=name) from exc
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            f"{source} {exc}, not {str(value) if isinstance(value, _Text) else value!r}", setting=name
        ) from exc


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text")
    if "\0" in value:
        raise ValueError("must be a text without zero characters")
    return str(value).strip()


def _url(value: object) -> str:
    text = _text(value)
    if not re.match(r"https?://[^/]", text):
        raise ValueError("must begin with http:// or https:// and name a host")
    return text


def _path(value: object) -> Path:
    path = value if isinstance(value, Path) else Path(_text(value))
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("must begin with a home folder that this system knows") from None


def _location(value: object) -> str:
    """A path or a URL; ``~`` is expanded in paths, those of ``sqlite:///`` included."""
    text = str(value) if isinstance(value, Path) else _text(value)
    scheme, separator, rest = text.partition(":///")
    if separator:
        return f"{scheme}:///{_path(rest)}" if rest.startswith("~") else text
    return text if "://" in text else str(_path(text))


def _number(value: object, *, above: float | None = None, at_least: float | None = None) -> float:
    wanted = "must be a number" + (f" above {above:g}" if above is not None else "")
    wanted += f" of at least {at_least:g}" if at_least is not None else ""
    if isinstance(value, bool) or not isinstance(value, int | float | _Text):
        raise TypeError(wanted)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(wanted) from None
    finite = math.isfinite(number)
    if not finite or (above is not None and number <= above) or (at_least is not None and number < at_least):
        raise ValueError(wanted)
    return number


def _budget(value: object) -> float | None:
    """Dollars; infinity is no limit, and so lifts one that a file sets."""
    return None if value in (math.inf, "inf") else _number(value, at_least=0)


def _count(value: object) -> int:
    number = _number(value, at_least=1)
    if not number.is_integer():
        raise ValueError("must be a whole number")
    return int(number)


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return read


def _approve(value: object) -> str:
    text = _text(value)
    if text in ("ask", "allow", "deny"):
        return text
    if not text.endswith(".toml"):
        raise ValueError("must be ask, allow, deny, or the path of a policy file that ends in .toml")
    return str(_path(text))


def _trace(value: object) -> str | None:
    if isinstance(value, bool):
        return "console" if value else None
    text = _text(value)
    if text.lower() in ("true", "1", "yes", "on"):
        return "console"
    if text.lower() in ("false", "0", "no", "off"):
        return None
    return text if text in ("console", "otlp") else str(_path(text))


class _PriceError(ValueError):
    """What is wrong inside the table of prices; begins with the place, which goes on after ``pricing``."""


_PRICES = ("input", "output", "cached_input")


def _pricing(value: object) -> Mapping[str, Mapping[str, float]]:
    if not isinstance(value, Mapping):
        raise TypeError('must be tables like [pricing."provider/model"] with input and output in USD per 1K tokens')
    return MappingProxyType({str(model): _price(str(model), price) for model, price in value.items()})


def _price(model: str, price: object) -> Mapping[str, float]:
    place = f'."{model}"'
    if not isinstance(price, Mapping):
        raise _PriceError(f"{place} must be a table with input and output in USD per 1K tokens, not {price!r}")
    for key, usd in price.items():
        if key not in _PRICES and isinstance(usd, Mapping):
            raise _PriceError(
                f'{place} holds no price but another table; a name with dots goes in quotes: "{model}.{key}"'
            )
        if key not in _PRICES:
            raise _PriceError(
                f"{place} has an unknown key {key!r}.{nearest(key, _PRICES) or ' It takes ' + ', '.join(_PRICES) + '.'}"
            )
    if missing := [key for key in ("input", "output") if key not in price]:
        raise _PriceError(f"{place} lacks {missing[0]}, in USD per 1K tokens")
    prices = {}
    for key, usd in price.items():
        try:
            prices[key] = _number(usd, at_least=0)
        except (TypeError, ValueError) as exc:
            raise _PriceError(f"{place}.{key} {exc}, not {usd!r}") from exc
    return MappingProxyType(prices)


_READERS: dict[str, Callable[[Any], object]] = {
    "model": _text,
    "api_base": _url,
    "home": _path,
    "storage": _location,
    "memory_url": _location,
    "vectors": _location,
    "embedder": _text,
    "budget_usd": _budget,
    "approve": _approve,
    "trace": _trace,
    "app": _location,
    "lm_timeout": lambda value: _number(value, above=0),
    "unpriced": _one_of(*get_args(Unpriced)),
    "workers": _count,
    "pricing": _pricing,
}
assert _READERS.keys() == {entry.name for entry in dataclasses.fields(Settings)} - {"sources"}
