"""Content and its parts: what people and agents say, as values.

The wire form is google-adk's (google-genai's `Content`): camelCase keys, absent fields left out, bytes as base64.
Snake case is accepted on input, and null for a field that is absent.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticUndefined

from sojourn.jsonvalue import JsonMembers


class Value(BaseModel):
    """Base of the public values: immutable, camelCase on the wire, unknown fields ignored on input."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        allow_inf_nan=False,
        # Beyond any text there is: with a bound, pydantic looks at the text and refuses lone surrogates, which no store takes.
        str_max_length=2**40,
    )

    _absent: ClassVar[dict[str, Any]]
    _names: ClassVar[set[str]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        defaults = {name: f.get_default(call_default_factory=True) for name, f in cls.model_fields.items()}
        # What could be written into is not shared: such a field has no default for `unchecked`.
        cls._absent = {n: d for n, d in defaults.items() if d is not PydanticUndefined and type(d) not in (dict, list)}
        cls._names = set(cls.model_fields)

    @classmethod
    def unchecked(cls, fields: dict[str, Any]) -> Self:
        """A value of fields that are known to be valid, as they are; in a tenth of the time that looking at them takes.

        Args:
            fields: By name. Those that are absent have their default; required ones and those whose default is a fresh dict
                have to be there.
        """
        return cls._assembled({**cls._absent, **fields})

    @classmethod
    def _assembled(cls, fields: dict[str, Any]) -> Self:
        value = object.__new__(cls)
        _set(value, "__dict__", fields)
        # One set for all: who keeps a million values keeps no million sets, which the garbage collector would walk through.
        _set(value, "__pydantic_fields_set__", cls._names)
        _set(value, "__pydantic_extra__", None)
        _set(value, "__pydantic_private__", None)
        return value

    def to_json(self) -> str:
        """The wire form: camelCase JSON text without the fields that have their default."""
        return self.__pydantic_serializer__.to_json(self, by_alias=True, exclude_defaults=True).decode()

    def to_wire(self) -> dict[str, Any]:
        """The wire form as a dict."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


_set = object.__setattr__


def null_means(absent: Any) -> BeforeValidator:
    """For a field that has a default other than None: null, which google-adk's clients may send, counts as `absent`."""
    return BeforeValidator(lambda value: absent if value is None else value)


Flag = Annotated[bool, null_means(False)]
JsonObject = Annotated[JsonMembers, null_means({})]


class Blob(Value):
    """Bytes carried inside a part."""

    mime_type: str = "application/octet-stream"
    data: bytes
    display_name: str | None = None


class FileData(Value):
    """A reference to bytes kept elsewhere: an `artifact:` reference, or any other URI."""

    file_uri: str
    mime_type: str | None = None
    display_name: str | None = None


class FunctionCall(Value):
    """A request to call a function."""

    id: str | None = None
    name: str
    args: JsonObject = Field(default_factory=dict)


class FunctionResponse(Value):
    """The answer to a `FunctionCall` with the same `id`."""

    id: str | None = None
    name: str
    response: JsonObject = Field(default_factory=dict)


class Part(Value):
    """One piece of a content: exactly one of text, bytes, file reference, function call or response.

    Attributes:
        text: Text; with `thought=True` the model's reasoning, which is not part of its answer.
    """

    text: str | None = None
    thought: Flag = False
    inline_data: Blob | None = None
    file_data: FileData | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None

    @classmethod
    def from_text(cls, text: str, *, thought: bool = False) -> Self:
        """A part that holds text."""
        return cls(text=text, thought=thought)

    @classmethod
    def from_bytes(cls, data: bytes, mime_type: str = "application/octet-stream", *, display_name: str | None = None) -> Self:
        """A part that holds bytes."""
        return cls(inline_data=Blob(data=data, mime_type=mime_type, display_name=display_name))

    @classmethod
    def from_uri(cls, file_uri: str, mime_type: str | None = None) -> Self:
        """A part that refers to a file."""
        return cls(file_data=FileData(file_uri=file_uri, mime_type=mime_type))

    @classmethod
    def from_function_call(cls, name: str, args: dict[str, Any] | None = None, *, id: str | None = None) -> Self:
        """A part that asks for a function call."""
        return cls(function_call=FunctionCall(id=id, name=name, args=args or {}))

    @classmethod
    def from_function_response(cls, name: str, response: dict[str, Any], *, id: str | None = None) -> Self:
        """A part that answers a function call."""
        return cls(function_response=FunctionResponse(id=id, name=name, response=response))


_ROLES = ("user", "model")


class Content(Value):
    """A message: a role and its parts.

    `Content("user").with_text("Hello")` builds one step by step; each step returns a new value.
    """

    role: str | None = None
    # Of parts that are none, the first is told: there may be any number of them.
    parts: tuple[Part, ...] = Field((), fail_fast=True)

    def __init__(self, role: str | None = None, parts: Any = (), **data: Any) -> None:
        data["role"] = role
        data["parts"] = () if parts is None else parts
        super().__init__(**data)

    @classmethod
    def of(cls, value: str | Content, role: str = "user") -> Content:
        """`value` as content: text becomes one text part."""
        if isinstance(value, Content):
            return value
        if type(value) is str and value.isascii() and role in _ROLES:
            # There is nothing to find in it.
            return cls.unchecked({"role": role, "parts": (Part.unchecked({"text": value}),)})
        return cls(role, (Part(text=value),))

    def with_part(self, part: Part) -> Content:
        """This content with one more part."""
        return Content(self.role, (*self.parts, part))

    def with_text(self, text: str) -> Content:
        """This content with one more text part."""
        return self.with_part(Part(text=text))

    def with_bytes(self, data: bytes, mime_type: str = "application/octet-stream") -> Content:
        """This content with one more part of bytes."""
        return self.with_part(Part.from_bytes(data, mime_type))

    @property
    def text(self) -> str:
        """All text of this content, without thoughts."""
        parts = self.parts
        if len(parts) == 1 and not parts[0].thought:
            return parts[0].text or ""
        return "".join(p.text for p in parts if p.text and not p.thought)

    @property
    def thoughts(self) -> str:
        """The reasoning in this content."""
        return "".join(p.text for p in self.parts if p.text and p.thought)

    def get_function_calls(self) -> list[FunctionCall]:
        """The function calls in this content."""
        return [p.function_call for p in self.parts if p.function_call]

    def get_function_responses(self) -> list[FunctionResponse]:
        """The function responses in this content."""
        return [p.function_response for p in self.parts if p.function_response]
