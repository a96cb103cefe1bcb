"""What a function is called with, and what it returns, held to its signature on every call."""

from __future__ import annotations

import copy
import functools
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.errors import PydanticUserError

from agenthelm.copies import own
from agenthelm.core.effects import LostResult
from agenthelm.core.json_schema import SchemaWithoutSecrets
from agenthelm.core.redaction import MASK, looks_secret
from agenthelm.core.sensitive import holds_secrets, secret_fields, unmarked_fields
from agenthelm.core.signature import Parameter, Signature
from agenthelm.exceptions import ToolContractError, ToolInputError, ToolOutputError, nearest
from agenthelm.tracing.marks import hidden

__all__ = ["KEY_PARAMETER", "Binding", "own_copy"]

KEY_PARAMETER = "idempotency_key"
_SCALARS = (str, int, float, bool, bytes, type(None))
_IMMUTABLE = frozenset(_SCALARS)
_DATA = frozenset((*_SCALARS, dict, list, tuple))
_NOT_RUN = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)
"""What a call gives that has only been begun."""


class Binding:
    """A function's parameters and result, ready to validate.

    Args:
        signature: What it takes and gives.

    Raises:
        ToolContractError: A type can't be validated.
    """

    def __init__(self, signature: Signature) -> None:
        self.name: str = signature.name
        self._function = signature.function
        self._positional = signature.positional
        self.parameters: dict[str, Parameter] = signature.parameters
        self.defaults: dict[str, Any] = signature.defaults
        self.open_ended: bool = signature.open_ended
        self.takes_key: bool = KEY_PARAMETER in self.parameters
        self.sensitive: frozenset[str] = frozenset(p.name for p in self.parameters.values() if p.sensitive)
        self.guarded: frozenset[str] = frozenset(
            p.name for p in self.parameters.values() if holds_secrets(p.annotation)
        )
        self._secret_rest: bool = holds_secrets(signature.rest_type)
        if self._secret_rest:  # a name of their own, so that a call that does not bind is known to have secrets
            self.sensitive |= {signature.rest}
            self.guarded |= {signature.rest}
        self.result_type: Any = signature.result_type
        self.result_fields: dict[str, Any] = signature.result_fields
        fields = self.result_fields
        self.secret_fields: frozenset[str] = (
            frozenset(name for name, kind in fields.items() if holds_secrets(kind))
            if fields
            else secret_fields(self.result_type)
        )
        self.secret_result: bool = not self.secret_fields and not fields and holds_secrets(self.result_type)
        self._hidden_fields = (
            frozenset(name for name, kind in fields.items() if hidden(kind))
            if fields
            else unmarked_fields(self.result_type)
        )
        self._hidden_result = not self._hidden_fields and not fields and hidden(self.result_type)
        self.hides: bool = self._hidden_result or bool(self._hidden_fields)
        self._arguments = signature.arguments_adapter()
        self._rest_values = signature.rest_adapter()
        self._result = signature.result_adapter()

    # -- on every call ------------------------------------------------------------------------------------------------

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Validate and coerce arguments, and fill in defaults.

        Raises:
            ToolInputError: Naming each argument that does not fit.
            ToolContractError: A type inside a parameter's type is not defined.
        """
        try:
            # The adapter's own validator, because what stands before it costs more than most validations.
            bound: dict[str, Any] = self._arguments.validator.validate_python(dict(arguments))
            if self._rest_values is not None:
                extras = {name: value for name, value in bound.items() if name not in self.parameters}
                bound.update(self._rest_values.validate_python(extras))
        except ValidationError as exc:
            raise ToolInputError(f"tool {self.name!r}: {self._explain(exc)}", tool_name=self.name) from None
        except PydanticUserError as exc:  # a type inside a type, which pydantic had hoped to find until now
            raise ToolContractError(
                f"tool {self.name!r}: a parameter has a type that can't be validated: {str(exc).splitlines()[0]}",
                tool_name=self.name,
            ) from exc
        if self.defaults:
            for key, value in self.defaults.items():
                if key not in bound:
                    bound[key] = value
        return bound

    def unfit(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The arguments that don't fit, and those that are missing, each with the reason."""
        try:
            self._arguments.validator.validate_python(dict(arguments))
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_input=False)
            return {str(item["loc"][0]): self._reason(item) for item in reversed(errors)}
        except Exception:  # noqa: BLE001 - a validator that fails as none should; the call itself will say so
            return {}
        return {}

    def invoke(self, bound: Mapping[str, Any]) -> Any:
        """Call the function with bound arguments."""
        if not self._positional:
            return self._function(**bound)
        return self.prepared(bound)()

    def prepared(self, bound: Mapping[str, Any]) -> functools.partial[Any]:
        """The call as a value, which pickles if the function and its arguments do."""
        rest = dict(bound)
        return functools.partial(self._function, *[rest.pop(name) for name in self._positional if name in rest], **rest)

    def check_result(self, value: Any) -> Any:
        """Validate and coerce a result.

        Raises:
            ToolOutputError: It does not fit the contract; the tool has run all the same.
        """
        if type(value) not in _DATA:
            self._refuse_no_result(value)
        if self._result is None:
            return value
        try:
            if self.result_fields and self._is_single_field(value):
                (field,) = self.result_fields
                return self._result.validator.validate_python({field: value})[field]
            return self._result.validator.validate_python(value)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ToolOutputError(
                f"tool {self.name!r} returned something its contract does not allow{f' at {where}' if where else ''}: "
                f"{first['msg']}",
                tool_name=self.name,
            ) from None
        except Exception as exc:
            # An undefined type inside a type, or a validator that fails as none should: the tool has run all the same.
            raise ToolOutputError(
                f"tool {self.name!r} returned something that can't be validated: "
                f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}",
                tool_name=self.name,
            ) from exc

    def _refuse_no_result(self, value: Any) -> None:
        awaited = hasattr(type(value), "__await__")
        if awaited or isinstance(value, _NOT_RUN):
            if isinstance(value, (types.CoroutineType, types.GeneratorType)):
                value.close()
            how = "awaits; define it with 'async def'" if awaited else "iterates; return a list"
            raise ToolOutputError(
                f"tool {self.name!r} returned a {type(value).__name__.replace('_', ' ')} that nobody {how}",
                tool_name=self.name,
                ran=False,
            )
        if isinstance(value, LostResult):
            raise ToolOutputError(
                f"tool {self.name!r} ran, but its result can't leave its process: {value.reason}", tool_name=self.name
            )

    def shown(self, value: Any) -> Any:
        """A result without what its declaration marks `Redacted` and the value itself knows nothing of."""
        if not self.hides or value is None:
            return value
        if self._hidden_result or not isinstance(value, Mapping):
            return MASK
        return {key: MASK if key in self._hidden_fields and item is not None else item for key, item in value.items()}

    def fields_of(self, value: Any) -> dict[str, Any]:
        """The fields of a result by name, as compensators receive them."""
        if isinstance(value, Mapping):
            return {str(key): item for key, item in value.items()}
        if self._is_single_field(value):
            return {next(iter(self.result_fields)): value}
        return {key: getattr(value, key) for key in _fields_of_type(type(value)) if hasattr(value, key)}

    # -- what others ask ----------------------------------------------------------------------------------------------

    def sensitive_among(self, names: Iterable[str]) -> frozenset[str]:
        """The arguments whose values must never be shown, ``**kwargs`` of these names included."""
        return self.sensitive.union(self._not_parameters(names)) if self._secret_rest else self.sensitive

    def guarded_among(self, names: Iterable[str]) -> frozenset[str]:
        """The arguments that may hold a secret, ``**kwargs`` of these names included."""
        return self.guarded.union(self._not_parameters(names)) if self._secret_rest else self.guarded

    def _not_parameters(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self.parameters]

    def declared_fields(self) -> frozenset[str] | None:
        """Names a result is declared to have; None when the declaration does not say (a bare ``dict``, ``Any``)."""
        if self.result_fields:
            return frozenset(self.result_fields)
        kind = self.result_type
        origin = typing.get_origin(kind) or kind
        if isinstance(origin, type) and (names := _fields_of_type(origin)):
            return frozenset(names)
        if origin is Any or (isinstance(origin, type) and issubclass(origin, Mapping)):
            return None
        if origin in (typing.Union, types.UnionType):
            return None
        return frozenset()

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the arguments a caller gives; what the executor fills in is left out.

        Raises:
            ToolContractError: A parameter's type has no JSON schema.
        """
        try:
            schema = self._arguments.json_schema(schema_generator=SchemaWithoutSecrets)
        except PydanticUserError as exc:
            raise ToolContractError(
                f"tool {self.name!r} has a parameter without a JSON schema, so no LM can call it: {exc}",
                tool_name=self.name,
            ) from exc
        schema.pop("title", None)
        properties = schema.get("properties", {})
        properties.pop(KEY_PARAMETER, None)
        for name, prop in properties.items():
            prop.pop("title", None)
            shown = name not in self.guarded and not looks_secret(name)
            if shown and isinstance(self.defaults.get(name, ...), (*_SCALARS, list, dict)):
                prop.setdefault("default", self.defaults[name])
        if self._rest_values is not None:
            extras = self._rest_values.json_schema(schema_generator=SchemaWithoutSecrets)
            schema["additionalProperties"] = extras["additionalProperties"]
            if "$defs" in extras:
                schema["$defs"] = {**extras["$defs"], **schema.get("$defs", {})}
        if "required" in schema:
            schema["required"] = [name for name in schema["required"] if name != KEY_PARAMETER]
        return schema

    def _is_single_field(self, value: Any) -> bool:
        return len(self.result_fields) == 1 and not isinstance(value, Mapping)

    def _explain(self, error: ValidationError) -> str:
        parts = [self._reason(item) for item in error.errors(include_url=False, include_input=False)]
        takes = [name for name in self.parameters if name != KEY_PARAMETER]
        takes += ["any other name"] if self.open_ended and takes else ["any name"] if self.open_ended else []
        return f"{'; '.join(parts)} (it takes {', '.join(takes) or 'nothing'})"

    def _reason(self, item: Any) -> str:
        """One error of a validation in words."""
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            return f"{where!r} is missing"
        if item["type"] == "extra_forbidden":
            return f"{where!r} is no parameter.{nearest(where, self.parameters)}".rstrip(".")
        return f"{where!r}: {item['msg']}"


def _fields_of_type(kind: type) -> list[str]:
    """The names of the fields of a model, a dataclass, a named tuple, or a class that annotates them."""
    for attribute in ("model_fields", "__dataclass_fields__"):
        if (names := getattr(kind, attribute, None)) is not None:
            return list(names)
    if issubclass(kind, tuple):
        return list(getattr(kind, "_fields", ()))
    if issubclass(kind, _SCALARS):
        return []
    return list(dict.fromkeys(name for base in reversed(kind.__mro__) for name in inspect.get_annotations(base)))


def own_copy(bound: dict[str, Any]) -> dict[str, Any]:
    """Bound arguments that nobody else can change; what can't be copied (handles, locks, clients) is shared."""
    for value in bound.values():
        if type(value) not in _IMMUTABLE:
            break
    else:
        return bound
    try:
        return copy.deepcopy(bound)
    except Exception:  # noqa: BLE001 - one of them can't be copied: the others can
        return {name: own(value) for name, value in bound.items()}
