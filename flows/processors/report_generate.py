"""`report.generate`: a Prefect flow as a processor; its steps are task runs of their own in the UI.

    publish(session, "report.generate", {"title": "Orders", "figures": {"open": 3, "paid": 39}})

The report's path is derived from ``action.key`` and the file is replaced as a whole, so that a repeat overwrites its
own earlier work and a reader never sees half a report. A subflow costs hundreds of milliseconds: right for work that
takes longer than that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from pydantic import BaseModel, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from prefect_claim_dispatch import Action, processor

ONE_LINE = r"^[^\r\n]+$"


class ReportRequest(BaseModel):
    """What the report says."""

    title: Annotated[str, StringConstraints(pattern=ONE_LINE, max_length=200)]
    figures: dict[str, float]


class ReportSettings(BaseSettings):
    """``REPORT_DIRECTORY``: where reports go."""

    model_config = SettingsConfigDict(env_prefix="REPORT_")

    directory: Path = Path("reports")


@processor("report.generate", max_attempts=3)
@flow(name="report.generate")
def generate_report(payload: ReportRequest, action: Action) -> None:
    """Compose the report, then write it."""
    text = compose(payload)
    write(text, action)
    get_run_logger().info("report written for %s", action.reference)


# NO_CACHE: with results persisted, Prefect would otherwise give one report's text to every equal request in a run.
@task(cache_policy=NO_CACHE)
def compose(payload: ReportRequest) -> str:
    """The report as Markdown: a table, largest figure first, and the total."""
    ranked = sorted(payload.figures.items(), key=lambda item: (-item[1], item[0]))
    rows = [f"| {name} | {value:g} |" for name, value in [*ranked, ("total", sum(payload.figures.values()))]]
    return "\n".join([f"# {payload.title}", "", "| figure | value |", "| --- | ---: |", *rows, ""])


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=1)
def write(text: str, action: Action) -> None:
    """Put *text* into the action's file, all of it or nothing."""
    path = report_path(action)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named by the fence: an attempt that lost its lease but still runs writes a draft of its own.
    draft = path.with_name(f"{path.name}.{action.claim_count}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def report_path(action: Action) -> Path:
    """Where the report of *action* is, in whatever attempt: ``reports/action_logs%3A42.md``."""
    return ReportSettings().directory / f"{quote(action.key, safe='')}.md"
