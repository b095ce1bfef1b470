"""`replay`: run a recorded run again, and say whether it was the same to the bit, or from which stage on it differs."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from ..errors import GGUFError, LlavaError, NumericsError, PairError, ParameterError, visible
from ..loading import load
from ..model import Llava
from ..records.comparison import Replayed, compare
from ..records.record import HashedFile, Record, hashed_files, read_record
from ..records.recording import repeat
from . import options
from .output import coloured, print_json
from .parser import Example, Parser
from .progress import LINE

EXAMPLES: Sequence[Example] = (
    ("llava-ref replay run.json", "whether the embedded model did the same again; exit code 1 if it did not"),
    (
        "llava-ref replay run.json -m text.gguf --mmproj mmproj.gguf --backend numpy",
        "the first array in which the other backend differs, and whether the answer is the same",
    ),
)


def add_arguments(parser: Parser) -> None:
    parser.group("files").add_argument(
        "file", type=Path, metavar="FILE", help="a record, made by --record of another command or by a server"
    )
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_backend(parser, recorded=True)
    options.add_json(parser, "print one JSON object: what differs, and from which stage on")


def run(args: argparse.Namespace) -> int:
    """Return 0 if everything was the same to the bit, 1 if not."""
    record = read_record(args.file)
    with _naming(args):
        with LINE.loading():
            model = _load(args, record)
        _check_files(args, record, model)
        with LINE.open(model):
            found = compare(record, repeat(record, model))
    if args.json:
        print_json(_as_json(found))
    else:
        print("\n".join(_told(record, found)))
    return 0 if found.same else 1


@contextmanager
def _naming(args: argparse.Namespace) -> Iterator[None]:
    """Name the record in an error about what it says, and the field in it; not in one about a file or an option."""
    try:
        yield
    except (GGUFError, PairError, NumericsError):
        raise
    except LlavaError as error:
        if error.where.startswith("-") or getattr(args, error.where, None) is not None:
            raise
        raise ParameterError(args.file, f"{error.where}: {error.field}", error.problem) from None


def _load(args: argparse.Namespace, record: Record) -> Llava:
    """Load the pair as the record says; options that were given come first."""
    text, mmproj = options.pair(args)
    kept = record.settings
    return load(
        text,
        mmproj if "mmproj" in record.files or args.mmproj else None,
        backend=args.backend or kept.backend,
        device=args.device or kept.device,
        precision=kept.precision,
        profile=kept.profile,
        quirks=kept.quirks,
        threads=kept.threads if args.threads is None else args.threads,
        n_context=kept.n_context,
        template=kept.template,
    )


def _check_files(args: argparse.Namespace, record: Record, model: Llava) -> None:
    """Raise ParameterError unless the files are those of the record, byte for byte; their names may differ."""
    here = hashed_files(model)
    for half, option in {"text": "--model", "mmproj": "--mmproj"}.items():
        for recorded, given in zip_longest(record.files.get(half, []), here.get(half, [])):
            if recorded is None or given is None or recorded.sha256 != given.sha256:
                default = " (no file was given: the embedded pair)" if args.model is None else ""
                problem = f"recorded {_named(recorded)}, here {_named(given)}{default}"
                raise ParameterError(option, "SHA-256", problem)


def _named(file: HashedFile | None) -> str:
    return "no file" if file is None else f"{file.name} {file.sha256}"


def _told(record: Record, found: Replayed) -> Iterator[str]:
    """Yield what was otherwise, how the answers compare, and whether the arrays are the same."""
    for name, (there, here) in found.settings.items():
        yield visible(f"{name}: recorded with {there}, here {here}")
    if record.answer is not None:
        at = "" if found.answer_from is None else f" from token {found.answer_from + 1} on"
        yield f"answer: {'the same' if found.answer_same else f'differs{at}'}, {len(record.answer.token_ids)} tokens"
    if found.same:
        yield coloured(f"the same to the bit: {found.arrays:,} arrays", "green")
    else:
        text = f"differs from {visible(str(found.place))} on"
        yield f"{coloured(text, 'red')}: {found.arrays_same:,} of {found.arrays:,} arrays before it are the same"


def _as_json(found: Replayed) -> dict[str, object]:
    fields = {name: value for name, value in asdict(found).items() if name != "first"}
    stages = [None if array is None else asdict(array) for array in found.first or (None, None)]
    return {
        "same": found.same,
        "from": found.place,
        **fields,
        "first": dict(zip(("recorded", "here"), stages, strict=True)),
    }
