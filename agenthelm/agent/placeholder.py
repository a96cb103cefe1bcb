"""Reads what a prompt asks for, and fills it with valid, clearly labelled placeholder values."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ENDINGS", "fill_prompt", "fill_schema", "is_placeholder", "placeholder", "render"]

_LABEL = "[offline placeholder: "
_OUTPUTS = re.compile(r"Your output fields are:\n(.*?)(?:\nAll interactions will be structured|\Z)", re.DOTALL)
_FIELD = re.compile(r"^\d+\. `([^`]+)` \((.*?)\):(?: |$)", re.MULTILINE)
_CHAT = re.compile(r"^\[\[ ## (\w+) ## \]\]\n\{\1\}[ ]*(?:# note: the value you produce (.*))?$", re.MULTILINE)
_XML = re.compile(r"^<(\w+)>\n\{\1\}[ ]*(?:# note: the value you produce (.*))?\n</\1>$", re.MULTILINE)
_XML_NESTED = re.compile(r"^<(\w+)>(?=[^\n{]*\.\.\.)(.*)</\1>$", re.MULTILINE)
_JSON_FOLLOWS = "Outputs will be a JSON object with the following fields.\n\n"
_SCHEMA = "must adhere to the JSON schema: "
ENDINGS = ("finish", "submit")
"""Names of the pseudo tools by which DSPy's tool loops end."""

_ENDING = re.compile(
    rf"\b({'|'.join(ENDINGS)}), whose description is <desc>.*?</desc>\. It takes arguments (\{{.*?\}})\.(?=[\"'\n\]]|$)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One output field that a prompt asks for.

    Attributes:
        name: Its name.
        annotation: Its type as the prompt spells it, such as ``list[str]``.
        note: What the prompt demands of its value; empty for plain text.
    """

    name: str
    annotation: str
    note: str = ""


def placeholder(name: str) -> str:
    """The text that stands for an answer nobody gave."""
    return f"{_LABEL}{name}]"


def is_placeholder(text: object) -> bool:
    """Whether the offline model made a text up."""
    return isinstance(text, str) and text.startswith(_LABEL)


def asked_fields(system: str) -> list[Asked]:
    """The output fields that the system message of a DSPy prompt describes, in order; empty for other prompts."""
    section = _OUTPUTS.search(system)
    if section is None:
        return []
    notes = {name: note or "" for name, note in (*_CHAT.findall(system), *_XML.findall(system))}
    start = system.find(_JSON_FOLLOWS)
    if start >= 0:
        try:
            shape, _ = json.JSONDecoder().raw_decode(system, start + len(_JSON_FOLLOWS))
        except json.JSONDecodeError:
            shape = {}
        for name, text in shape.items():
            notes[name] = str(text).partition("# note: the value you produce ")[2]
    return [
        Asked(name, annotation, notes.get(name, "").strip()) for name, annotation in _FIELD.findall(section.group(1))
    ]


def fill_prompt(system: str, response_format: Mapping[str, Any] | None = None, *, prompt: str = "") -> dict[str, Any]:
    """Values for everything that a prompt asks for, by field; empty when it asks for no fields.

    Args:
        system: The system message, which describes the fields.
        response_format: A JSON schema that the answer must fit, under ``schema``.
        prompt: The other messages, which may list tools.
    """
    schema = (response_format or {}).get("schema")
    if isinstance(schema, Mapping):
        value = fill_schema(schema)
        return value if isinstance(value, dict) else {}
    return {asked.name: _value(asked, prompt) for asked in asked_fields(system)}


def render(values: Mapping[str, Any], system: str, response_format: Mapping[str, Any] | None = None) -> str:
    """Write values the way a prompt asks for them: as marked sections, as a JSON object, or as XML."""
    if response_format is not None or _JSON_FOLLOWS in system:
        return json.dumps(values, ensure_ascii=False)
    if "[[ ## " in system:
        sections = [f"[[ ## {name} ## ]]\n{_text(value)}" for name, value in values.items()]
        return "\n\n".join([*sections, "[[ ## completed ## ]]"])
    if _XML.search(system) or _XML_NESTED.search(system):
        nested = dict(_XML_NESTED.findall(system))
        return "\n".join(
            f"<{name}>{nested[name].replace('...', '1')}</{name}>"
            if name in nested and value == placeholder(name)
            else f"<{name}>\n{_text(value)}\n</{name}>"
            for name, value in values.items()
        )
    return "\n".join(_text(value) for value in values.values())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value) if isinstance(value, bool) else "null"
    return json.dumps(value, ensure_ascii=False)


def _value(asked: Asked, prompt: str) -> Any:
    note, annotation = asked.note, asked.annotation
    if annotation == "ToolCalls":
        return {"tool_calls": _ending_call(prompt)}
    if note.startswith(_SCHEMA):
        try:
            return fill_schema(json.loads(note[len(_SCHEMA) :]), asked.name)
        except json.JSONDecodeError:
            return placeholder(asked.name)
    if annotation.startswith("Literal["):
        return _choice(_literals(annotation) or _options(note), asked.name)
    if "one of: " in note:
        return _choice(_options(note), asked.name)
    simple: dict[str, Any] = {"int": 1, "float": 1.0, "bool": True, "list": [], "dict": {}}
    return simple.get(annotation, placeholder(asked.name))


def _ending_call(prompt: str) -> list[dict[str, Any]]:
    """The call that ends a tool loop, if its pseudo tool is on offer; no other tool is ever called."""
    offered = _ENDING.search(prompt)
    if offered is None:
        return []
    try:
        parameters = ast.literal_eval(offered.group(2))
    except (ValueError, SyntaxError):
        return []
    return [
        {"name": offered.group(1), "args": {name: fill_schema(schema, name) for name, schema in parameters.items()}}
    ]


def _options(note: str) -> list[Any]:
    return list(note.partition("one of: ")[2].split("; ")) if "one of: " in note else []


def _literals(annotation: str) -> list[Any]:
    try:
        return list(ast.literal_eval(annotation.removeprefix("Literal")))
    except (ValueError, SyntaxError):
        return []


def _choice(options: Sequence[Any], name: str) -> Any:
    for ending in ENDINGS:
        if ending in options:
            return ending
    return options[0] if options else placeholder(name)


def fill_schema(schema: Mapping[str, Any] | bool, name: str = "value") -> Any:
    """A value that a JSON schema accepts; patterns are not looked at."""
    root = schema if isinstance(schema, Mapping) else {}
    return _fill(root, name, root, 0)


def _fill(schema: Mapping[str, Any] | bool, name: str, root: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, Mapping):
        return placeholder(name)
    if "$ref" in schema:
        target: Any = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            target = target.get(part, {}) if isinstance(target, Mapping) else {}
        return _fill(target, name, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return _choice(schema["enum"], name)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        some = [option for option in options if option.get("type") != "null"]
        # A value that contains itself ends where null is allowed.
        return None if not some or (depth > 4 and len(some) < len(options)) else _fill(some[0], name, root, depth)
    if schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            merged.update(part)
        return _fill(merged, name, root, depth)
    return _typed(schema, name, root, depth)


def _typed(schema: Mapping[str, Any], name: str, root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "object" or (kind is None and "properties" in schema):
        return _object(schema, root, depth)
    if kind == "array":
        return _array(schema, name, root, depth)
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    return _string(schema, name)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    properties: Mapping[str, Any] = schema.get("properties", {})
    value = {
        name: _fill(inner, name, root, depth + 1)
        for name, inner in properties.items()
        if depth <= 4 or name in required
    }
    extra = schema.get("additionalProperties")
    if not properties and isinstance(extra, Mapping) and extra and depth <= 4:
        value["placeholder"] = _fill(extra, "placeholder", root, depth + 1)
    return value


def _array(schema: Mapping[str, Any], name: str, root: Mapping[str, Any], depth: int) -> list[Any]:
    if schema.get("prefixItems"):
        return [_fill(inner, name, root, depth + 1) for inner in schema["prefixItems"]]
    least = int(schema.get("minItems", 0))
    count = least if depth > 4 or schema.get("maxItems") == 0 else max(1, least)
    items = schema.get("items", {"type": "string"})
    values = [_fill(items, name, root, depth + 1) for _ in range(count)]
    if schema.get("uniqueItems") and count > 1:
        values = [f"{value} {index}" if isinstance(value, str) else value for index, value in enumerate(values)]
    return values


def _number(schema: Mapping[str, Any], *, whole: bool) -> int | float:
    step = 1 if whole else 0
    low, high = schema.get("minimum", float("-inf")), schema.get("maximum", float("inf"))
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    value: float = min(max(1, low), high)
    if above is not None and value <= above:
        value = above + step if whole else (above + min(high, below or float("inf"), above + 2)) / 2
    if below is not None and value >= below:
        value = below - step if whole else (max(low, below - 2 if above is None else above) + below) / 2
    factor = schema.get("multipleOf")
    if factor:
        value = -(-value // factor) * factor
    return int(value) if whole else float(value)


_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "placeholder@example.com",
    "uri": "https://example.com/offline-placeholder",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
}


def _string(schema: Mapping[str, Any], name: str) -> str:
    text = _FORMATS.get(str(schema.get("format")), placeholder(name))
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    text = text.ljust(least, ".")
    return text if most is None else text[:most]
