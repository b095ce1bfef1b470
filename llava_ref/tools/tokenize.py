"""`tokenize`: convert text to token ids."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import gguf
from ..errors import ParameterError
from ..loading import embedded
from ..tokenizer.tokenizer import Tokenizer
from . import options
from .output import print_json
from .parser import Example, Parser

EXAMPLES: Sequence[Example] = (
    ('llava-ref tokenize -m text.gguf "a red circle"', "a JSON list of token ids"),
    ("llava-ref tokenize --no-bos --file text.txt", "the same for a file, without the token that begins a sequence"),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    group = parser.group("files")
    group.add_argument("--file", type=Path, metavar="F", help="read the text from a file")
    group = parser.group("question")
    group.add_argument("text", nargs="?", metavar="TEXT", help="default: --file, or standard input")
    group.add_argument("--no-special", action="store_true", help="read texts of control tokens as plain text")
    group.add_argument("--no-bos", action="store_true", help="omit the beginning-of-sequence token")
    options.add_json(parser, "print a JSON list, which is the default too")


def run(args: argparse.Namespace) -> int:
    """Print one JSON list of ids."""
    text = _text(args)
    tokenizer = Tokenizer.from_gguf(gguf.read(args.model or embedded()[0]))
    print_json(tokenizer.encode(text, special=not args.no_special, bos=not args.no_bos))
    return 0


def _text(args: argparse.Namespace) -> str:
    if args.text is not None and args.file is not None:
        raise ParameterError("--file", str(args.file), "given together with a text, expected one of them")
    if args.text is not None:
        return options.checked_text("TEXT", args.text)
    data, where = (args.file.read_bytes(), str(args.file)) if args.file else (sys.stdin.buffer.read(), "standard input")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise ParameterError(where, f"byte {error.start}", "not UTF-8") from None
