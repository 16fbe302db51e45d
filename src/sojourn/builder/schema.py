"""What an `app.yaml` may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    SecretStr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from sojourn.agents.per_user import IDLE_SECONDS, MAX_KEPT
from sojourn.builder.source import Source
from sojourn.data.pruning import Retention
from sojourn.run.config import RunConfig

DOTTED_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"
NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
URL_PATTERN = r"^[Hh][Tt][Tt][Pp][Ss]?://\S+$"

FORMS = {
    DOTTED_PATTERN: "must be a dotted name: package.module:name",
    NAME_PATTERN: "is no name: letters, digits, _ and -, at most 64, and no digit first",
    URL_PATTERN: "must be an address that begins with http:// or https://",
}
"""What to say of a text that does not have the form it should."""

Dotted = Annotated[str, Field(pattern=DOTTED_PATTERN)]
"""Something of a Python module: `package.module:name`. Modules are looked for in the config's directory first."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]

Url = Annotated[str, Field(pattern=URL_PATTERN)]


class KeysSeen(dict[int, list[str]]):
    """The keys that each mapping of a config may have, by the mapping's id: what a misspelt one is compared with."""


class Section(BaseModel):
    """A mapping of a config. Showing it shows which keys are set and no value: any may have come from the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _note_keys(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(info.context, KeysSeen):
            info.context[id(data)] = list(cls.model_fields)
        return data

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _takes_numbers_only(cls.model_fields[info.field_name or ""]):
            raise PydanticCustomError("no_number", "must be a number, not true or false")
        return value

    def __repr_args__(self) -> Any:
        return ((name, _UNTOLD) for name in sorted(self.model_fields_set))


class _Untold:
    def __repr__(self) -> str:
        return "…"


_UNTOLD = _Untold()


def _takes_numbers_only(field: FieldInfo) -> bool:
    text = str(field.annotation)
    return ("int" in text or "float" in text) and "bool" not in text


# -- what agents use ----------------------------------------------------------------------------------------------------


class ModelConfig(Section):
    """A language model."""

    model: str = Field(min_length=1, description="provider:name, or with base_url the name by which the server knows it.")
    base_url: Url | None = Field(
        None,
        description="Address of a server that speaks OpenAI's protocol: Ollama, vLLM, llama.cpp and others.",
    )
    api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="The key, as ${NAME}. Without it, the provider's own environment variable is read.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="temperature, max_tokens and so on, as pydantic-ai has them."
    )


class ToolConfig(Section):
    """A function that models may call."""

    function: Dotted = Field(description="The function, or a tool or toolset: package.module:name.")
    description: str | None = Field(None, description="What models are told of it; the function's docstring if omitted.")
    require_approval: bool | Dotted | None = Field(
        None,
        description="Whether a person has to allow each call; or a function of a call's arguments that says whether.",
    )
    timeout: float | None = Field(None, gt=0, description="Seconds a call may take before the model is told that it failed.")
    retries: int | None = Field(None, ge=0, description="How often the model may try again after arguments that do not fit.")
    long_running: bool | None = Field(None, description="A person gives the result; the run waits for it.")
    sequential: bool | None = Field(None, description="Calls of it run alone, not beside others of the same turn.")

    @field_validator("require_approval", mode="before")
    @classmethod
    def _truth_from_the_environment(cls, value: Any) -> Any:
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """What is set besides the function."""
        return {name: getattr(self, name) for name in self.model_fields_set if name != "function"}


class InstructionConfig(Section):
    """A function that says what an agent is to do."""

    function: Dotted = Field(description="A function of the context, whose text is taken as it is: package.module:name.")


class McpServerConfig(Section):
    """A server of tools that speaks the Model Context Protocol: at a URL, or a command that is started."""

    url: Url | None = Field(None, description="Address of a running server.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="HTTP headers sent to it.")
    command: str | None = Field(None, min_length=1, description="A program that is started, and spoken to by its streams.")
    args: list[str] = Field(default_factory=list, description="Its arguments.")
    env: dict[str, SecretStr] = Field(default_factory=dict, description="Its environment variables.")
    cwd: str | None = Field(None, description="Its working directory; relative to the config's.")
    tools: list[str] | None = Field(None, description="Which of its tools are offered; all if omitted.")
    prefix: Name | None = Field(None, description="Put before the names of its tools, with a _ between.")
    require_approval: bool = Field(False, description="Whether a person has to allow each call.")
    connect_timeout: float = Field(5, gt=0, description="Seconds that connecting may take.")
    timeout: float = Field(300, gt=0, description="Seconds a call may take.")

    @model_validator(mode="after")
    def _one_way(self) -> McpServerConfig:
        if (self.url is None) == (self.command is None):
            raise PydanticCustomError("one_way", "needs either url, or command with args")
        others = self.model_fields_set & ({"args", "env", "cwd"} if self.command is None else {"headers"})
        if others:
            given = "url" if self.command is None else "command"
            raise PydanticCustomError("one_way", f"{', '.join(sorted(others))} cannot go with {given}; remove it")
        return self


def _model_of(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


def _tool_of(value: Any) -> Any:
    return {"function": value} if isinstance(value, str) else value


def _list_of(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _name_or_tool(value: Any) -> str | None:
    if isinstance(value, str):
        return "kind=name"
    return "kind=tool" if isinstance(value, ToolConfig | Mapping) else None


def _text_or_function(value: Any) -> str | None:
    if isinstance(value, str):
        return "kind=text"
    return "kind=function" if isinstance(value, InstructionConfig | Mapping) else None


ModelEntry = Annotated[ModelConfig, BeforeValidator(_model_of, json_schema_input_type=str | ModelConfig)]
ToolEntry = Annotated[ToolConfig, BeforeValidator(_tool_of, json_schema_input_type=Dotted | ToolConfig)]
ToolOrName = Annotated[
    Annotated[str, Tag("kind=name")] | Annotated[ToolConfig, Tag("kind=tool")],
    Discriminator(
        _name_or_tool,
        custom_error_type="no_tool",
        custom_error_message="must be a name, or a mapping with a function",
    ),
]
InstructionEntry = Annotated[
    Annotated[str, Tag("kind=text")] | Annotated[InstructionConfig, Tag("kind=function")],
    Discriminator(
        _text_or_function,
        custom_error_type="no_instruction",
        custom_error_message="must be a text, or a mapping with a function",
    ),
]
Callbacks = Annotated[list[Dotted], BeforeValidator(_list_of, json_schema_input_type=Dotted | list[Dotted])]


# -- agents -------------------------------------------------------------------------------------------------------------


class AgentConfig(Section):
    """What all kinds of agents have."""

    kind: str
    name: str | None = Field(None, min_length=1, description="Needed inside of sub_agents; else the key is the name.")
    description: str | None = Field(None, description="What it is good for; other agents choose by it.")
    sub_agents: list[SubAgent] = Field(default_factory=list, description="Names of agents, or agents.")
    before_agent: Callbacks = Field(default_factory=list, description="Called before it runs.")
    after_agent: Callbacks = Field(default_factory=list, description="Called after it ran.")
    disallow_transfer_to_parent: bool = Field(False, description="It may not hand back to its parent.")
    disallow_transfer_to_peers: bool = Field(False, description="It may not hand over to its parent's other agents.")


class LlmAgentConfig(AgentConfig):
    """An agent that a language model drives."""

    kind: Literal["llm"] = Field("llm", description="What kind of agent it is.")
    model: str = Field(min_length=1, description="A name of models, or provider:name.")
    instruction: InstructionEntry = Field(
        "", description="What it is to do: a text in which {key} stands for a value of the state, or a function."
    )
    tools: list[ToolOrName] = Field(
        default_factory=list,
        description="Names of tools and mcp_servers, of built-in tools (load_memory, …), or package.module:function.",
    )
    output_schema: Dotted | dict[str, Any] | None = Field(
        None, description="What its answer must be: a JSON schema, or a type as package.module:name."
    )
    output_key: str | None = Field(None, min_length=1, description="The state key under which its answer is kept.")
    output_mode: Literal["tool", "native", "prompted"] | None = Field(
        None, description="How the model is made to keep to the schema; what suits it best if omitted."
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="In addition to the model's, and before them.")
    tool_timeout: float | None = Field(None, gt=0, description="Seconds a call of a tool may take.")
    retries: int | None = Field(None, ge=0, description="How often the model may try again after what does not fit.")
    before_model: Callbacks = Field(default_factory=list, description="Called before each call of the model.")
    after_model: Callbacks = Field(default_factory=list, description="Called after each call of the model.")
    before_tool: Callbacks = Field(default_factory=list, description="Called before each call of a tool.")
    after_tool: Callbacks = Field(default_factory=list, description="Called after each call of a tool.")


class FunctionAgentConfig(AgentConfig):
    """An agent that is written in Python."""

    kind: Literal["function"] = Field(description="What kind of agent it is.")
    function: Dotted = Field(description="A function of the context, or an agent: package.module:name.")


class SequentialAgentConfig(AgentConfig):
    """Runs its agents one after the other."""

    kind: Literal["sequential"] = Field(description="What kind of agent it is.")
    sub_agents: list[SubAgent] = Field(min_length=1, description="Names of agents, or agents.")


class ParallelAgentConfig(AgentConfig):
    """Runs its agents at the same time."""

    kind: Literal["parallel"] = Field(description="What kind of agent it is.")
    sub_agents: list[SubAgent] = Field(min_length=1, description="Names of agents, or agents.")


class LoopAgentConfig(AgentConfig):
    """Runs its agents again and again, until one escalates."""

    kind: Literal["loop"] = Field(description="What kind of agent it is.")
    sub_agents: list[SubAgent] = Field(min_length=1, description="Names of agents, or agents.")
    max_iterations: int | None = Field(None, ge=1, description="How often at most.")


KINDS = ("llm", "function", "sequential", "parallel", "loop")

TAG = "kind="
"""What the tags of the kinds begin with. No key of a config does: tags stand beside keys in the places of errors."""


def _kind_of(value: Any) -> str | None:
    if isinstance(value, AgentConfig):
        return TAG + value.kind
    return f"{TAG}{value.get('kind', 'llm')}" if isinstance(value, Mapping) else None


def _kind_or_name(value: Any) -> str | None:
    return f"{TAG}name" if isinstance(value, str) else _kind_of(value)


_Llm = Annotated[LlmAgentConfig, Tag("kind=llm")]
_Function = Annotated[FunctionAgentConfig, Tag("kind=function")]
_Sequential = Annotated[SequentialAgentConfig, Tag("kind=sequential")]
_Parallel = Annotated[ParallelAgentConfig, Tag("kind=parallel")]
_Loop = Annotated[LoopAgentConfig, Tag("kind=loop")]

AgentEntry = Annotated[_Llm | _Function | _Sequential | _Parallel | _Loop, Discriminator(_kind_of)]
SubAgent = Annotated[
    Annotated[str, Tag("kind=name")] | _Llm | _Function | _Sequential | _Parallel | _Loop, Discriminator(_kind_or_name)
]


# -- the rest -----------------------------------------------------------------------------------------------------------


class EmbedderConfig(Section):
    """What makes vectors of texts, so that memory is found by what it means."""

    model: str = Field(
        min_length=1,
        description="minilm, a model on this machine; or the name by which a server knows its model.",
    )
    dimensions: int | None = Field(None, ge=1, description="How many numbers the vectors have; needed unless it is minilm.")
    base_url: Url | None = Field(
        None, description="Address of a server that speaks OpenAI's protocol for embeddings; OpenAI's if omitted."
    )
    api_key: SecretStr | None = Field(
        None, min_length=1, description="The key, as ${NAME}. Without it and base_url, OPENAI_API_KEY is read."
    )
    timeout: float = Field(10.0, gt=0, description="Seconds that one request may take.")


class ServicesConfig(Section):
    """Where things are kept. Paths are relative to the config's directory."""

    session: str | None = Field(
        None, description="Sessions and runs: sqlite:///app.db, or memory. Left to who runs the app if omitted."
    )
    artifacts: str | None = Field(None, description="A directory, s3://bucket/prefix, memory, or none.")
    memory: str | None = Field(
        None, description="sqlite:///app.db, postgresql://…, qdrant+http://host:6333, qdrant:///directory, memory, or none."
    )
    embedder: EmbedderConfig | None = Field(
        None, description="Finds what is in memory by what it means, too. By words alone if omitted."
    )
    memory_ingest: Literal["on_run_end", "manual"] = Field(
        "manual", description="on_run_end: what a run has said is added to the user's memory when it has completed."
    )


class LimitsConfig(Section):
    """How much may run at once, and be spent."""

    max_concurrency: int | None = Field(None, description="Runs executing at once; 0 for no bound.")
    max_concurrency_per_user: int | None = Field(None, ge=1, description="Of these, of one user.")
    max_queue: int | None = Field(None, ge=0, description="Runs that may wait; beyond, they are refused.")
    queue_timeout: float | None = Field(None, gt=0, description="Seconds a run may wait before it fails.")
    max_tokens_per_user: int | None = Field(
        None, ge=1, description="Tokens, in and out, that one user may spend within token_window; none by default."
    )
    token_window: float | None = Field(
        None, gt=0, description="Seconds; a day by default. Counted by the hour, each until all of it has passed."
    )


class RetentionConfig(Section):
    """How long the app's data is kept."""

    ttl: float | None = Field(
        None, ge=0, description="Seconds after its last activity after which a session is removed; never by default."
    )
    max_events: int | None = Field(
        None, ge=0, description="Of each session, at least so many newest events stay; older runs are removed."
    )
    max_age: float | None = Field(None, ge=0, description="Seconds after its end after which a run is removed.")
    every: float = Field(3600.0, ge=1, description="Seconds from one round to the next.")

    def to_retention(self) -> Retention:
        """The same as a plain `Retention`."""
        return Retention(ttl=self.ttl, max_events=self.max_events, max_age=self.max_age, every=self.every)


class RunSettings(Section, RunConfig):
    """How runs run: the fields of `RunConfig`."""

    def to_run_config(self) -> RunConfig:
        """The same as a plain `RunConfig`."""
        return RunConfig(**{name: getattr(self, name) for name in self.model_fields_set})


class AppConfig(Section):
    """An app: its agents, and what they use.

    Made by `load_config("app.yaml")`, or of a mapping by `AppConfig.model_validate(…)`, which knows no environment.
    """

    app_name: str = Field(min_length=1, description="Sessions, state, artifacts and memory belong to it.")
    root: str | None = Field(None, description="The agent that is asked first; the one that is no other's if omitted.")
    per_user: bool = Field(False, description="Whether each user gets agents of their own.")
    per_user_idle: float | None = Field(
        IDLE_SECONDS, gt=0, description="Seconds for which a user's agents are kept that nobody uses; null for no bound."
    )
    per_user_max: int | None = Field(
        MAX_KEPT, ge=1, description="How many users' agents are kept, unless more are in use; null for no bound."
    )
    models: dict[Name, ModelEntry] = Field(default_factory=dict, description="Models by name.")
    tools: dict[Name, ToolEntry] = Field(default_factory=dict, description="Tools by the name that models call them by.")
    mcp_servers: dict[Name, McpServerConfig] = Field(default_factory=dict, description="MCP servers by name.")
    agents: dict[str, AgentEntry] = Field(min_length=1, description="Agents by name.")
    services: ServicesConfig = Field(default_factory=ServicesConfig, description="Where things are kept.")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="How much may run at once, and be spent.")
    retention: RetentionConfig | None = Field(None, description="How long data is kept; for ever if omitted.")
    run_config: RunSettings = Field(default_factory=RunSettings, description="How runs run.")
    plugins: list[Dotted] = Field(default_factory=list, description="Plugins, or their classes: package.module:name.")
    transfer_policy: Dotted | None = Field(None, description="Asked before each hand-over: package.module:name.")

    propagate: list[Dotted] = Field(
        default_factory=list,
        description="Context variables whose values at the call are handed into runs: package.module:name.",
    )

    _source: Source = PrivateAttr(default_factory=lambda: Source("", Path.cwd()))

    @property
    def source(self) -> Source:
        """Where it came from."""
        return self._source

    def with_source(self, source: Source) -> AppConfig:
        """The same, known to have come from somewhere."""
        self._source = source
        return self


for _section in (AgentConfig, LlmAgentConfig, FunctionAgentConfig, SequentialAgentConfig, ParallelAgentConfig, LoopAgentConfig):
    _section.model_rebuild()
AppConfig.model_rebuild()
