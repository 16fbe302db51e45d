"""The routes of this dialect."""

from __future__ import annotations

from fastapi import APIRouter

from sojourn.server.adk import apps, artifacts, memory, runs, sessions, traces


def adk_routers() -> list[APIRouter]:
    """All routes of google-adk's dialect but `/run_live`; those that are asked for most come first."""
    return [module.router for module in (runs, sessions, apps, artifacts, memory, traces)]
