"""`chat`: hold a conversation on the terminal, or read one line per turn from a pipe."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import LlavaError, ParameterError, PromptError, visible
from ..generation.reuse import Reuse
from ..generation.sampling import Sampling
from ..model import Llava
from . import options
from .output import explained, note, print_pieces, summary
from .parser import Example, Parser
from .progress import LINE

HELP = "expected /image FILE, /clear or /exit"


EXAMPLES: Sequence[Example] = (
    ("llava-ref chat --image cat.jpg", "each answer as it comes; /image FILE shows a picture, /exit leaves"),
    (
        "printf '/image cat.jpg\\nWhat is this?\\n' | llava-ref chat",
        "the answers alone, one message for each line that is piped in",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_images(parser)
    options.add_system(parser)
    options.add_sampling(parser)
    options.add_text(parser)
    options.add_running(parser)
    parser.group("output").add_argument(
        "-v", "--verbose", action="store_true", help="the time that each answer took, on standard error"
    )


class Conversation:
    """Holds the turns so far and the pictures for the next message. Every turn runs the whole conversation again."""

    def __init__(self, model: Llava, args: argparse.Namespace, sampling: Sampling) -> None:
        self._model, self._args, self._sampling = model, args, sampling
        model.reuse = Reuse()  # a turn's pictures are encoded once
        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        self._system: list[dict[str, Any]] = system
        self.clear()

    def clear(self) -> None:
        """Forget every turn and picture."""
        self._turns = list(self._system)
        self._images: list[Any] = []

    def add_image(self, path: Path) -> None:
        """Add a picture to the next message. Raises ImageError or PromptError."""
        if not self._model.has_tower:
            raise PromptError(str(path), "image", "the model was loaded without an mmproj file and cannot see pictures")
        image = self._model.decode_image(path)
        for warning in image.warnings:
            note(f"warning: {visible(warning)}")
        self._images.append(image.rgb)

    def say(self, text: str) -> None:
        """Send a message and print the answer as it comes. Ctrl-C ends the answer; the text so far is kept."""
        turns = [*self._turns, options.user_message(options.checked_text("message", text), self._images)]
        request = self._model.request(turns)
        stream = self._model.answer(request, self._sampling, max_tokens=self._args.max_tokens, stop=self._args.stop)
        try:
            with LINE.open(self._model, request=request):
                print_pieces(stream if sys.stdout.isatty() else LINE.counted(stream))
        except KeyboardInterrupt:
            stream.close()
            print(flush=True)
            note("(stopped)")
        reply = stream.reply
        if self._args.verbose:
            note(summary(reply))
        if reply.text:
            self._turns, self._images = [*turns, {"role": "assistant", "content": reply.text}], []


def run(args: argparse.Namespace) -> int:
    """Return 0, or 2 if a line of a piped conversation was refused."""
    sampling = options.sampling(args)
    with LINE.loading():
        model = options.load_model(args, *options.pair(args))
    conversation = Conversation(model, args, sampling)
    for path in args.image:
        conversation.add_image(path)
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  (line editing for input())

        note("/image FILE shows a picture, /clear starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer")
    failed = False
    while True:
        try:
            line = input("> " if terminal else "").strip()
            if line == "/exit":
                break
            _obey(conversation, line)
        except EOFError:
            break
        except LlavaError as error:
            note(f"error: {explained(error)}")
            failed = True
    return 2 if failed and not terminal else 0


def _obey(conversation: Conversation, line: str) -> None:
    """Execute a command, or send a message. Raises LlavaError."""
    command, _, rest = line.partition(" ")
    if command == "/image" and rest:
        conversation.add_image(Path(rest.strip()))
    elif line == "/clear":
        conversation.clear()
    elif line.startswith("/"):
        raise ParameterError(command, "command", HELP)
    elif line:
        conversation.say(line)
