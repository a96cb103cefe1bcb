"""JSON schemas that may be shown: without the defaults of what is secret."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from agenthelm.core.sensitive import without_marked

__all__ = ["SchemaWithoutSecrets"]


class SchemaWithoutSecrets(GenerateJsonSchema):
    """Leaves out the default of what is only ever written, and masks what is `Redacted` in those of other fields."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """The schema of a field that has a default."""
        made = super().default_schema(schema)
        if _written_only({key: item for key, item in made.items() if key != "default"}):
            made.pop("default", None)
        return made

    def encode_default(self, dft: Any) -> Any:
        """A default as the schema tells it."""
        return without_marked(dft, super().encode_default(dft))


def _written_only(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("writeOnly") is True or any(map(_written_only, schema.values()))
    return isinstance(schema, list) and any(map(_written_only, schema))
