"""Render a report of `apicheck` as one page that needs nothing else."""

from importlib.resources import files

from llava_ref.html import environment

from .suite import LEVELS, ApiReport

WORDS = {"pass": "met", "fail": "not met", "skip": "not judged"}


def render(report: ApiReport) -> str:
    """Return the page: what is not met first, then every demand in the order in which it was checked."""
    template = environment().from_string((files(__package__) / "page.html.jinja").read_text("utf-8"))
    missed = [one for level in LEVELS for one in report.judged if (one.verdict, one.case.level) == ("fail", level)]
    return template.render(report=report, missed=missed, levels=LEVELS, words=WORDS)
