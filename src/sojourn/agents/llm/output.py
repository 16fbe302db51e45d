"""The shape that an agent's answers have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.output import NativeOutput, PromptedOutput, StructuredDict, ToolOutput

from sojourn.errors import InvalidInput

OUTPUT_TOOL = "final_result"
"""The tool by which a model gives structured output; pydantic-ai's name for it."""

OutputMode = Literal["tool", "native", "prompted"]

_MODES: dict[str, Callable[[Any], Any]] = {"tool": ToolOutput, "native": NativeOutput, "prompted": PromptedOutput}


class OutputShape:
    """What the answers of an agent must be.

    Args:
        agent: The agent's name.
        schema: A type, or a JSON schema as a dict; None for text.
        mode: How the model is made to keep to it; what suits the model best if None.

    Raises:
        InvalidInput: `agent.invalid`.
    """

    def __init__(self, agent: str, schema: Any, mode: OutputMode | None) -> None:
        if isinstance(schema, dict):
            _check_schema(agent, schema)
        if mode not in (None, *_MODES):
            known = ", ".join(_MODES)
            raise InvalidInput(f"output_mode of agent {agent!r} is {mode!r}; it may be {known}", code="agent.invalid")
        self.schema = schema
        self._mode = mode
        # Models give objects only.
        self._wraps = isinstance(schema, dict) and schema.get("type") != "object"

    def reserved_names(self) -> tuple[str, ...]:
        """The names of the tools by which it is given."""
        return (OUTPUT_TOOL,) if self.schema is not None else ()

    def engine_type(self) -> Any:
        """What pydantic-ai is told that the output is.

        Raises:
            UserError: It is nothing that pydantic-ai can ask for; so do `TypeError` and `PydanticUserError`.
        """
        schema = self.schema
        if schema is None:
            return str
        if isinstance(schema, dict):
            schema = StructuredDict(_wrapping(schema) if self._wraps else schema)
        return schema if self._mode is None else _MODES[self._mode](schema)

    @property
    def checks(self) -> bool:
        """Whether `check` is to be called: pydantic-ai shows a JSON schema to the model, and takes whatever comes."""
        return isinstance(self.schema, dict)

    async def check(self, output: Any) -> Any:
        """Gives the output back if it fits a JSON schema.

        Raises:
            ModelRetry: It does not; the model is to try again.
        """
        import jsonschema

        try:
            jsonschema.validate(self.unwrapped(output), self.schema)
        except jsonschema.ValidationError as error:
            raise ModelRetry(f"the output does not fit its schema: {error.message}") from None
        return output

    def unwrapped(self, output: Any) -> Any:
        """What the model gave, as the schema has it."""
        return output.get("value") if self._wraps and isinstance(output, dict) else output


def _check_schema(agent: str, schema: dict[str, Any]) -> None:
    # Only agents with a schema pay for loading the validator.
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        message = f"output_schema of agent {agent!r} is not a JSON schema: {error.message}"
        raise InvalidInput(message, code="agent.invalid") from None


def _wrapping(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"value": schema}, "required": ["value"], "additionalProperties": False}
