"""The option --record: write what repeats a run, for `replay`."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import ParameterError
from ..generation.request import Reply, Request
from ..generation.sampling import Sampling
from ..model import Llava
from ..records.record import hashed_files
from ..records.recording import Recording
from ..records.request import RecordedRequest
from . import options
from .output import check_output, note, write_bytes
from .parser import Parser

Keep = Callable[[Request, Reply | None], None]


def add_record(parser: Parser) -> None:
    """Add --record."""
    does = "write what repeats this run, and a hash of every array, for llava-ref replay"
    parser.group("output").add_argument("--record", type=Path, metavar="FILE", help=does)


def check_record(args: argparse.Namespace, inputs: Sequence[Path | None], output: Path | None = None) -> None:
    """Check the file to write, before any work. `output`: the other file that is written. Raises ParameterError."""
    if args.record is None:
        return
    check_output(args.record, [*inputs, *args.image])
    if output is not None and args.record.resolve() == output.resolve():
        raise ParameterError(str(args.record), "output", "is the other file to write")


@contextmanager
def recorded(
    args: argparse.Namespace, model: Llava, sampling: Sampling, max_tokens: int | None, stop: Sequence[str] = ()
) -> Iterator[Keep]:
    """Watch the run inside the block, if --record asks for it; the function that it gets writes the record.

    The arguments are those of `Llava.answer`; `max_tokens` is 0 for a run without an answer."""
    if args.record is None:
        yield lambda request, reply: None
        return
    asked = (
        RecordedRequest.raw(args.prompt, args.image)
        if args.raw
        else RecordedRequest.conversation(options.messages(args))
    )
    recording = Recording(model, asked, sampling, max_tokens, stop)

    def keep(request: Request, reply: Reply | None) -> None:
        record = recording.record(hashed_files(model), request, reply)
        data = record.text()
        write_bytes(args.record, data)
        arrays = sum(len(one.arrays) for one in record.passes)
        note(f"{args.record}: a record of {arrays:,} arrays, {len(data):,} bytes")

    with model.probed(recording.hashes):
        yield keep
