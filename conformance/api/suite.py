"""All demands, and a run of them against one server."""

import http.client
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llava_ref.errors import ParameterError, nearest

from .answers import ANSWERS
from .bearing import BEARING
from .case import ApiCase, Level, Unmet, Untold, Verdict
from .faults import FAULTS
from .order import ORDER
from .pictures import PICTURES
from .scores import SCORES
from .streams import STREAMS
from .structured import STRUCTURED
from .target import Target

GROUPS = (PICTURES, ORDER, ANSWERS, STREAMS, FAULTS, SCORES, STRUCTURED, BEARING)
CASES = tuple(case for group in GROUPS for case in group.cases)
LEVELS: tuple[Level, ...] = ("must", "should", "may")


@dataclass(frozen=True, slots=True)
class Judged:
    """A case and what came of it. `why`: what came instead, or why the server cannot be judged."""

    case: ApiCase
    verdict: Verdict
    why: str
    curl: str
    """The last request of the case."""


@dataclass(frozen=True, slots=True)
class ApiReport:
    """All cases of one run."""

    url: str
    model: str
    judged: tuple[Judged, ...]

    @property
    def sound(self) -> bool:
        """Say whether no must has failed."""
        return not any(one.verdict == "fail" and one.case.level == "must" for one in self.judged)

    def count(self, level: Level, verdict: Verdict) -> int:
        return Counter((one.case.level, one.verdict) for one in self.judged)[level, verdict]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        counts = {level: {v: self.count(level, v) for v in ("pass", "fail", "skip")} for level in LEVELS}
        rows = [
            {"name": one.case.name, "level": one.case.level, "demand": one.case.demand, "source": one.case.source,
             "verdict": one.verdict, "why": one.why, "curl": one.curl}
            for one in self.judged
        ]  # fmt: skip
        return {"url": self.url, "model": self.model, "sound": self.sound, "counts": counts, "cases": rows}


def chosen(names: Sequence[str]) -> list[ApiCase]:
    """Return the cases of these names or groups, all without any. Raises ParameterError."""
    for name in names:
        known = [case.name for case in CASES] + [group.name for group in GROUPS]
        if name not in known:
            raise ParameterError("--only", repr(name), f"no such case{nearest(name, known)}")
    return [case for case in CASES if not names or case.name in names or case.name.partition(".")[0] in names]


def judge(case: ApiCase, target: Target) -> Judged:
    """Check one demand. Raises nothing: a server that breaks off has failed."""
    target.sent.clear()
    verdict: Verdict = "pass"
    why = ""
    try:
        case.check(target)
    except Unmet as unmet:
        verdict, why = "fail", str(unmet)
    except Untold as untold:
        verdict, why = "skip", str(untold)
    except (OSError, http.client.HTTPException) as error:
        verdict, why = "fail", f"no answer: {type(error).__name__}: {error}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        verdict, why = "fail", f"the answer has another shape: {type(error).__name__}: {error}"
    return Judged(case, verdict, why, target.sent[-1] if target.sent else "")


def first_model(target: Target) -> str:
    """Return the name of the first model that the server lists. Raises ParameterError if it cannot be asked."""
    try:
        listed = target.send("GET", "/models").json
    except (OSError, http.client.HTTPException) as error:
        raise ParameterError(target.url, "connection", str(error) or type(error).__name__) from None
    data = listed.get("data") if isinstance(listed, dict) else None
    name = data[0].get("id") if isinstance(data, list) and data and isinstance(data[0], dict) else None
    return name if isinstance(name, str) else "default"


def run(target: Target, cases: Iterable[ApiCase], told: Callable[[Judged], None]) -> ApiReport:
    """Check all demands, one after the other; `told` gets each as it is judged."""
    judged = []
    for case in cases:
        judged.append(judge(case, target))
        told(judged[-1])
    return ApiReport(target.url, target.model, tuple(judged))
