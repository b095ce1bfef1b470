"""Run several answers of a model at once, in one thread, turn by turn: their tokens share steps (`steps`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .answer import Stream, Turn
from .request import Step


class TakesTurns(Protocol):
    """Work of which one turn at a time is run."""

    @property
    def at_prompt(self) -> bool:
        """Say whether its next turn runs a stretch of a prompt, or a picture."""
        ...


T = TypeVar("T", bound=TakesTurns)


def in_turn(running: Sequence[T]) -> list[T]:
    """Return whose turn it is in the next round: all that are between two tokens, then the first that is at a prompt.

    So a prompt of any length delays the others' tokens by one stretch of it a round, and prompts are run one after the
    other, in the order in which they came."""
    return [*(work for work in running if not work.at_prompt), *[work for work in running if work.at_prompt][:1]]


@dataclass(slots=True, eq=False)
class _Answering:
    index: int
    turns: Iterator[Step | Turn]
    at_prompt: bool = False


def together(streams: Sequence[Stream]) -> Iterator[tuple[int, Step]]:
    """Run answers of one model at once to their ends: yield each token as it comes, with the index of its stream.

    Where the backend runs several sequences in one step (`Ops.together`), up to so many share each. The answers are
    those that each stream gives by itself."""
    running = [_Answering(index, stream.turns()) for index, stream in enumerate(streams)]
    while running:
        for answering in in_turn(running):
            turn = next(answering.turns, None)
            answering.at_prompt = turn is Turn.PROMPT
            if turn is None:
                running.remove(answering)
            elif isinstance(turn, Step):
                yield answering.index, turn
