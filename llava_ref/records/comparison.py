"""Compare a record with the record of the same run, made again."""

from dataclasses import asdict, dataclass
from itertools import zip_longest

from .record import Record
from .stages import HashedArray, first_difference

Pair = tuple[object, object]  # as recorded, and here


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a run that was made again differs from its record."""

    settings: dict[str, Pair]
    """What was set or installed otherwise, by name."""
    prompt_from: int | None
    """The first position whose token differs."""
    arrays: int
    """Those of the record."""
    arrays_same: int
    """Those at its beginning that are the same, to the bit."""
    first: tuple[HashedArray | None, HashedArray | None] | None
    """The first that is not, as recorded and here; None on a side that has no more."""
    answer_from: int | None
    """The first token of the answer that differs."""
    answer_same: bool
    """Whether tokens, text and the reason of its end are the same."""

    @property
    def same(self) -> bool:
        return self.prompt_from is None and self.first is None and self.answer_same

    @property
    def place(self) -> str | None:
        """Say from where on the runs differ: a stage and its positions, `token_ids` of the prompt, or `answer`."""
        if self.prompt_from is not None:
            return f"token_ids at position {self.prompt_from}"
        if self.first is not None:
            return next(array.place for array in self.first if array is not None)
        return None if self.answer_same else "answer"


def compare(recorded: Record, here: Record) -> Replayed:
    """Compare two records of one request, in the order in which a run computes."""
    same, first = first_difference(recorded.passes, here.passes)
    answers = [[] if record.answer is None else record.answer.token_ids for record in (recorded, here)]
    return Replayed(
        settings=_changed(_settings(recorded), _settings(here)),
        prompt_from=_first(recorded.prompt_ids, here.prompt_ids),
        arrays=sum(len(one.arrays) for one in recorded.passes),
        arrays_same=same,
        first=first,
        answer_from=_first(*answers),
        answer_same=recorded.answer == here.answer,
    )


def _settings(record: Record) -> dict[str, object]:
    settings = {name: value for name, value in asdict(record.settings).items() if name not in ("quirks", "template")}
    return record.versions | settings | record.settings.quirks


def _changed(recorded: dict[str, object], here: dict[str, object]) -> dict[str, Pair]:
    names = dict.fromkeys([*recorded, *here])
    return {name: (recorded.get(name), here.get(name)) for name in names if recorded.get(name) != here.get(name)}


def _first(a: list[int], b: list[int]) -> int | None:
    return next((i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y), None)
