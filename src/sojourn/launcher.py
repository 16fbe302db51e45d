"""`Launcher`: makes a program of an agent, which is a console or a server, as its command line says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

from sojourn.agents.base import Agent
from sojourn.agents.source import AgentSource
from sojourn.artifact.service import ArtifactService
from sojourn.cli.execute import Job
from sojourn.cli.program import job_of
from sojourn.cli.screen import open_missing_streams, use_utf8
from sojourn.cli.target import Target
from sojourn.errors import InvalidInput
from sojourn.memory.service import MemoryService
from sojourn.run.config import RunConfig
from sojourn.run.store import Store
from sojourn.runner.config import RunnerConfig
from sojourn.runner.plugins import Plugin
from sojourn.runner.runner import Runner


class Launcher:
    """Runs an agent as the program's command line says.

        await Launcher(my_agent).app_name("my_app").run()

    `python my.py` is a chat at the console, `python my.py run "Hello"` one run, `python my.py serve --port 9000` a server; the
    options are those of `sojourn run` and `sojourn serve`. What is not set has their defaults: sessions are kept in
    `./.sojourn/sojourn.db`, artifacts in `./.sojourn/artifacts`, memory in RAM; 100 runs execute at once.

    Args:
        agent: The root agent, or where each user's comes from; or a `RunnerConfig` or `Runner` with more.
    """

    def __init__(self, agent: Agent | AgentSource | RunnerConfig | Runner) -> None:
        if isinstance(agent, Runner):
            agent = agent.config
        if isinstance(agent, RunnerConfig):
            self._config = agent
        else:
            self._config = RunnerConfig(app_name=getattr(agent, "name", None) or "app", agent=agent)

    @property
    def settings(self) -> RunnerConfig:
        """What its Runner is made of; services that are left open are those of the command line."""
        return self._config

    def app_name(self, name: str) -> Self:
        """The app; the agent's name by default."""
        return self._with(app_name=name)

    def session_service(self, service: Store) -> Self:
        """Where sessions and runs are kept. `--db` on the command line counts instead."""
        return self._with(session_service=service)

    def artifact_service(self, service: ArtifactService | None) -> Self:
        """Where artifacts are kept; None for none."""
        return self._with(artifact_service=service)

    def memory_service(self, service: MemoryService | None) -> Self:
        """Where memories are kept; None for none."""
        return self._with(memory_service=service)

    def run_config(self, config: RunConfig) -> Self:
        """Defaults of the runs."""
        return self._with(run_config=config)

    def plugins(self, *plugins: Plugin) -> Self:
        """Called around runs, agents, steps and events, in order."""
        return self._with(plugins=plugins)

    def config(self, config: RunnerConfig | None = None, /, **changes: Any) -> Self:
        """A whole `RunnerConfig` in place of what is set so far, or any of its fields.

        Raises:
            InvalidInput: `runner.invalid` for a field that there is not.
        """
        if config is not None:
            self._config = config
        unknown = changes.keys() - {field.name for field in fields(RunnerConfig)}
        if unknown:
            raise InvalidInput(f"RunnerConfig has no {', '.join(sorted(unknown))}", code="runner.invalid")
        return self._with(**changes)

    async def run(self, argv: Sequence[str] | None = None) -> None:
        """Does what the command line says, to its end. For programs with an event loop; see `main` for others.

        Args:
            argv: What stands behind the program's name; `sys.argv[1:]` if omitted.

        Raises:
            SystemExit: It did not end well, or the words make no sense, which has been told.
        """
        code = await self._job(argv).carry_out_here()
        if code:
            raise SystemExit(code)

    def main(self, argv: Sequence[str] | None = None) -> None:
        """The same for a plain script; a server runs on uvloop then, if it is installed.

        Args:
            argv: As for `run`.

        Raises:
            SystemExit: As for `run`.
        """
        code = self._job(argv).carry_out()
        if code:
            raise SystemExit(code)

    def _with(self, **changes: Any) -> Self:
        self._config = replace(self._config, **changes)
        return self

    def _job(self, argv: Sequence[str] | None) -> Job:
        open_missing_streams()
        use_utf8()
        program = Path(sys.argv[0])
        target = Target("", self._config, program.parent)
        return job_of(target, sys.argv[1:] if argv is None else argv, program.name)
