"""Targets: what a user names an agent by on the command line: `file.py:name`, `package.module:name` or `app.yaml`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sojourn.agents.base import Agent
from sojourn.artifact.service import ArtifactService
from sojourn.builder.files import SUFFIXES
from sojourn.builder.problems import ConfigError
from sojourn.cli.failures import user_traceback
from sojourn.cli.othermodel import OtherModel, missing_keys_explained
from sojourn.errors import InvalidInput
from sojourn.run.store import Store
from sojourn.runner.config import Default, RunnerConfig
from sojourn.runner.runner import Runner

if TYPE_CHECKING:
    from sojourn.builder.workflow import WorkflowBuilder

USUAL_NAMES = ("root_agent", "agent", "app")
"""Names that are taken if a target names none and its module has several agents."""

FORMS = "a target is file.py:name, package.module:name or app.yaml"

_OTHER_FILES = {*SUFFIXES, ".toml", ".ini", ".txt", ".md", ".ipynb", ".js", ".ts"}


class TargetError(InvalidInput):
    """A target that cannot be run.

    Attributes:
        details: The traceback of a file that failed, in its own frames; empty otherwise.
    """

    def __init__(self, message: str, *, code: str, details: str = "") -> None:
        super().__init__(message, code=code)
        self.details = details


@dataclass(frozen=True, slots=True)
class Target:
    """An agent that was found.

    Attributes:
        spec: As the user wrote it; empty for what a program runs itself.
        config: What a Runner of it is made of; the services that the user's code leaves open are open here too.
        root: The directory that its code is imported from.
        other_model: The model that its agents have in place of their own.
        builder: What made it of a config file, and has to be closed; None for a target in Python.
    """

    spec: str
    config: RunnerConfig
    root: Path
    other_model: OtherModel | None = None
    builder: WorkflowBuilder | None = None

    async def __aenter__(self) -> Target:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.builder is not None:
            await self.builder.close()

    @property
    def file(self) -> Path | None:
        """The config file that it is; None for a target in Python."""
        return Path(self.spec) if self.builder is not None else None

    def loaded_again(self) -> Target:
        """The same, imported again; what a config names and is unchanged goes on being used.

        Raises:
            InvalidInput: As `load_target`.
        """
        if not self.spec:
            raise TargetError(
                "what a program runs itself cannot be imported again; start the program again", code="target.invalid"
            )
        if self.builder is not None:
            return _of_config(self.spec, self.other_model, self.builder)
        return load_target(self.spec, self.other_model)

    def runner_config(
        self, store: Store, artifacts: ArtifactService, *, app_name: str | None, own_services: bool
    ) -> RunnerConfig:
        """What a Runner of it is made of at the console.

        Args:
            store: Where sessions are kept, unless the user's code says otherwise.
            artifacts: Where artifacts are kept, unless the user's code says otherwise.
            app_name: The app; the target's own if None.
            own_services: Whether the user's code may say otherwise.
        """
        config = self.config
        if not own_services or isinstance(config.session_service, Default):
            config = replace(config, session_service=store)
        if not own_services or isinstance(config.artifact_service, Default):
            config = replace(config, artifact_service=artifacts)
        return config if app_name is None else replace(config, app_name=app_name)


def load_target(spec: str | Target, other_model: OtherModel | None = None) -> Target:
    """Imports what a target names.

    The working directory is put on `sys.path`; for a file also the directory of its outermost package, or its own.

    Args:
        spec: `file.py:name`, `package.module:name`, or an `app.yaml`. Without a name, the module's only agent, or the one that
            is called `root_agent`, `agent` or `app`. An agent that belongs to another one of the module does not count then.
            A target that needs no import is given back.
        other_model: A model for its agents in place of their own.

    Raises:
        TargetError: `target.invalid`, `target.not_found`, `target.unknown_name`, `target.not_an_agent`, or
            `target.broken` if importing it raises.
        ConfigError: Whatever is wrong with an `app.yaml`.
        InvalidInput: `target.no_model`, `model.no_key` and others for `other_model`.
    """
    if isinstance(spec, Target):
        if other_model is not None:
            other_model.give_to(spec.config.agent, spec.root.name)
        return replace(spec, other_model=other_model)
    if is_config(spec):
        _put_first(Path.cwd())
        return _of_config(spec, other_model)
    place, colon, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    if not place or (colon and not name.isidentifier()):
        raise TargetError(f"{spec!r} is not a target; {FORMS}", code="target.invalid")
    _put_first(Path.cwd())
    path = Path(place)
    if path.suffix == ".py" or path.suffix in _OTHER_FILES or os.sep in place or path.is_file():
        module, root = _import_file(path)
    else:
        module, root = _import_module(place)
    value = _named(module, place, name) if name else _only_one(module, place)
    config = _as_config(value)
    if other_model is not None:
        other_model.give_to(config.agent, spec)
    return Target(spec, config, root, other_model)


def is_config(spec: str) -> bool:
    """Whether a target is a config file."""
    return Path(spec).suffix in SUFFIXES


def _of_config(spec: str, other_model: OtherModel | None, builder: WorkflowBuilder | None = None) -> Target:
    # Only here: the models of a config's schema take a while to make.
    from sojourn.builder.workflow import WorkflowBuilder

    if builder is None:
        other = other_model
        builder = WorkflowBuilder() if other is None else WorkflowBuilder(model=other.name, base_url=other.base_url)
    with missing_keys_explained():
        config = _built(builder, spec)
    if other_model is not None:
        # With agents for each user, those of one are made to see whether a model drives any.
        other_model.give_to(config.agent if isinstance(config.agent, Agent) else builder.build(spec, "nobody"), spec)
    return Target(spec, config, Path(os.path.abspath(spec)).parent, other_model, builder)


def _built(builder: WorkflowBuilder, spec: str) -> RunnerConfig:
    try:
        return builder.build(spec)
    except ConfigError as error:
        if error.__cause__ is not None:
            error.details = "\n".join(part for part in (user_traceback(error.__cause__), error.details) if part)
        raise


def agents_in(module: ModuleType) -> dict[str, Agent | RunnerConfig | Runner]:
    """What can be run of a module, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Agent | RunnerConfig | Runner) and not name.startswith("_")
    }


def _as_config(value: Agent | RunnerConfig | Runner) -> RunnerConfig:
    match value:
        case Agent():
            return RunnerConfig(app_name=value.name, agent=value)
        case Runner():
            return value.config
        case _:
            return value


# -- importing ----------------------------------------------------------------------------------------------------------


def _import_file(path: Path) -> tuple[ModuleType, Path]:
    if path.suffix != ".py":
        kind = "a directory" if path.is_dir() else "not a Python file"
        raise TargetError(f"{str(path)!r} is {kind}; {FORMS}", code="target.invalid")
    if not path.is_file():
        near = _suggestion(path.name, (p.name for p in path.parent.glob("*.py")))
        raise TargetError(f"there is no file {str(path)!r}{near}", code="target.not_found")
    shown = str(path)
    path = path.resolve()
    names = [] if path.stem == "__init__" else [path.stem]
    top = path.parent
    while (top / "__init__.py").is_file():
        names.insert(0, top.name)
        top = top.parent
    _put_first(top)
    if len(names) > 1 or path.stem == "__init__":
        # Part of a package: imported by its full name, so that its relative imports work.
        return _imported(".".join(names), shown), top
    return _executed(path, shown), top


def _executed(path: Path, shown: str) -> ModuleType:
    """Imports a file that belongs to no package."""
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    # A file may be called like a module that others import by that name: it must not take its place.
    taken = known is not None or path.stem in sys.stdlib_module_names
    name = f"sojourn_target_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[name]
        raise _broken(shown, error) from error
    return module


def _import_module(name: str) -> tuple[ModuleType, Path]:
    if not all(part.isidentifier() for part in name.split(".")):
        # What looks like a file of a kind that is not supported must not be searched for as a module.
        raise TargetError(f"{name!r} is neither a Python file nor a module; {FORMS}", code="target.invalid")
    module = _imported(name, name)
    file = getattr(module, "__file__", None)
    if file is None:
        raise TargetError(f"{name!r} is not a module of Python source; {FORMS}", code="target.invalid")
    levels = name.count(".") + (Path(file).stem == "__init__")
    return module, Path(file).resolve().parents[levels]


def _imported(name: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            here = (p.stem for p in Path.cwd().iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file())
            near = _suggestion(name, here) if missing == name else ""
            raise TargetError(f"there is no module {missing!r}{near}", code="target.not_found") from error
        raise _broken(shown, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _broken(shown, error) from error


def _broken(place: str, error: BaseException) -> TargetError:
    return TargetError(
        f"{place} cannot be imported: {type(error).__name__}: {error}", code="target.broken", details=user_traceback(error)
    )


def _put_first(directory: Path) -> None:
    entry = str(directory)
    if entry not in sys.path:
        sys.path.insert(0, entry)


# -- choosing -----------------------------------------------------------------------------------------------------------


def _named(module: ModuleType, place: str, name: str) -> Agent | RunnerConfig | Runner:
    found = agents_in(module)
    value = getattr(module, name, None)
    if isinstance(value, Agent | RunnerConfig | Runner):
        return value
    if not hasattr(module, name):
        near = _suggestion(name, found or vars(module)) or "."
        raise TargetError(f"{place} has no {name!r}{near}{_listing(found)}", code="target.unknown_name")
    raise TargetError(
        f"{place}:{name} is {_described(value)}, which is neither an agent nor a RunnerConfig.{_listing(found)}",
        code="target.not_an_agent",
    )


def _only_one(module: ModuleType, place: str) -> Agent | RunnerConfig | Runner:
    found = agents_in(module)
    for names in ([n for n in USUAL_NAMES if n in found], _independent(found)):
        values = {id(found[name]): found[name] for name in names}
        if len(values) == 1:
            return next(iter(values.values()))
        if values:
            break
    if not found:
        raise TargetError(
            f"{place} has no agent; decorate a function with @agent, or make a RunnerConfig", code="target.unknown_name"
        )
    raise TargetError(f"{place} has several agents; say which: {_choices(place, found)}", code="target.unknown_name")


def _independent(found: dict[str, Agent | RunnerConfig | Runner]) -> list[str]:
    """The names of what is not part of something else that was found."""
    run_by_others = {id(_as_config(value).agent) for value in found.values() if not isinstance(value, Agent)}
    return [
        name
        for name, value in found.items()
        if not isinstance(value, Agent) or (value.parent_agent is None and id(value) not in run_by_others)
    ]


def _listing(found: dict[str, Any]) -> str:
    return f" Agents there: {', '.join(found)}" if found else " There is no agent in it"


def _choices(place: str, found: dict[str, Any]) -> str:
    return ", ".join(f"{place}:{name}" for name in found)


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _suggestion(name: str, among: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(among), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
