"""Print results and write files. No text from a file or a model reaches a terminal unescaped."""

import errno
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from ..errors import LlavaError, ParameterError, nearest_file, visible
from ..generation.request import Reply
from ..tracing.tracefile import whole_file
from .progress import LINE


def print_json(value: Any) -> None:
    """Print one line of JSON on standard output, in ASCII."""
    print(json.dumps(value, allow_nan=False))


def note(text: str) -> None:
    """Print one line on standard error, in place of the line of progress if that is shown."""
    LINE.erase()
    print(text, file=sys.stderr, flush=True)


def explained(error: LlavaError | OSError) -> str:
    """Return an error as one line; a file that is not there gets the name of one beside it that is alike."""
    if isinstance(error, OSError):
        where, text = str(error.filename or "output"), f"{error.filename or 'output'}: file: {error.strerror or error}"
        lost = isinstance(error, FileNotFoundError)
    else:
        where, text, lost = error.where, str(error), os.strerror(errno.ENOENT) in error.problem
    return text + (nearest_file(where) if lost else "")


def in_colour() -> bool:
    """Tell whether standard output shows colours: it is a terminal, and NO_COLOR (https://no-color.org) is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def coloured(text: str, colour: Literal["green", "red"]) -> str:
    """Colour a text for standard output, if that shows colours."""
    code = {"green": 32, "red": 31}[colour]
    return f"\x1b[{code}m{text}\x1b[0m" if in_colour() else text


def verdict(text: str, good: bool) -> str:
    """Colour a verdict for standard output, if that shows colours. A measured number without a bound is no verdict."""
    return coloured(text, "green" if good else "red")


def print_pieces(pieces: Iterable[str]) -> None:
    """Print an answer on standard output as it comes, then a line end."""
    for piece in pieces:
        if sys.stdout.isatty():
            LINE.erase()
        print(visible(piece), end="", flush=True)
    print(flush=True)


def summary(reply: Reply) -> str:
    """Summarise an answer's positions and timings in one line."""
    details, t = reply.usage["prompt_tokens_details"], reply.timings
    positions = f"{details['text_tokens']} text + {details['image_tokens']} image positions"
    stages = [f"{name} {t[f'{name}_s']:.2f} s" for name in ("load", "preprocess", "encode", "prefill", "decode")]
    rate = f" ({t['decode_tok_s']:.1f} tokens/s)" if t["decode_tok_s"] else ""
    return f"[{positions}; {', '.join(stages)}{rate}; {len(reply.token_ids)} tokens, {reply.finish_reason}]"


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Write a safetensors file, completely or not at all, after `check_output`."""
    write_bytes(path, save({name: np.ascontiguousarray(x) for name, x in tensors.items()}, metadata=dict(about)))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, completely or not at all, after `check_output`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, completely or not at all, after `check_output`."""
    with whole_file(path) as file:
        file.write(data)


def check_output(path: Path, inputs: Iterable[Path | None]) -> None:
    """Check a file to write, before any work.

    Raises ParameterError if `path` cannot be created or would replace one of `inputs`."""
    if not path.parent.is_dir():
        raise ParameterError(str(path), "output", "its folder does not exist")
    if path.exists() and not path.is_file():
        raise ParameterError(str(path), "output", "is there and is not a regular file")
    for other in inputs:
        if other is not None and path.exists() and other.exists() and path.samefile(other):
            raise ParameterError(str(path), "output", "is one of the input files")
