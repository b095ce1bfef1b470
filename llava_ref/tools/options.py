"""Define the options that several commands share, and load the model they describe."""

import argparse
import json
import os
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..chat.rendering import parse_messages, render_prompt
from ..chat.templates import TEMPLATES
from ..errors import ParameterError, nearest, nearest_file
from ..generation.request import Request
from ..generation.sampling import Sampling
from ..loading import embedded, load
from ..model import Llava
from ..ops import PRECISIONS
from ..profiles import PROFILES, ImageOrder
from ..tokenizer.quote import IMAGE
from .output import note
from .parser import Parser

GIB = 1 << 30
BACKENDS, DEVICES = ("torch", "numpy"), ("cpu", "cuda")
FLAGS = {  # setting of `Sampling` -> its option
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "frequency_penalty": "--frequency-penalty",
    "presence_penalty": "--presence-penalty",
    "seed": "--seed",
}


def add_model(parser: Parser) -> None:
    """Add -m, the text model."""
    group = parser.group("files")
    group.add_argument("-m", "--model", type=Path, metavar="TEXT.gguf", help="text model (default: the embedded one)")


def add_mmproj(parser: Parser) -> None:
    """Add --mmproj, the vision tower and projector."""
    parser.group("files").add_argument(
        "--mmproj", type=Path, metavar="MMPROJ.gguf", help="vision tower and projector (default: the embedded one)"
    )


def add_images(parser: Parser) -> None:
    """Add --image, which is repeatable."""
    parser.group("files").add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="a picture; repeatable"
    )


def add_output(parser: Parser, metavar: str, does: str, flag: str = "--output") -> None:
    """Add -o, the file that a command must write; or another option for one that it may."""
    flags = ("-o", flag) if flag == "--output" else (flag,)
    parser.group("output").add_argument(*flags, type=Path, required=flag == "--output", metavar=metavar, help=does)


def add_json(parser: Parser, does: str) -> None:
    """Add --json."""
    parser.group("output").add_argument("--json", action="store_true", help=does)


def add_prompt(parser: Parser, *, required: bool = True) -> None:
    """Add the options that `request` reads, besides --image."""
    group = parser.group("question")
    group.add_argument(
        "-p",
        "--prompt",
        required=required,
        metavar="TEXT",
        help="the question; pictures come before it, or in place of each <image> in it",
    )
    add_system(parser)
    group.add_argument(
        "--raw", action="store_true", help="use the prompt without a template; each <image> in it is a picture"
    )


def add_system(parser: Parser) -> None:
    """Add --system."""
    parser.group("question").add_argument("--system", metavar="TEXT", help="a system message")


def add_max_tokens(parser: Parser, default: int | None, does: str) -> None:
    """Add -n, the length of an answer."""
    parser.group("sampling").add_argument("-n", "--max-tokens", type=int, default=default, metavar="N", help=does)


def add_sampling(parser: Parser) -> None:
    """Add the options of sampling and of the end of an answer."""
    add_max_tokens(parser, None, "tokens of the answer, at most (default: to the end of the context)")
    group = parser.group("sampling")
    for setting in fields(Sampling):
        if setting.name in FLAGS:
            kind = float if isinstance(setting.default, float) else int
            does = setting.metadata["does"]
            group.add_argument(FLAGS[setting.name], dest=setting.name, type=kind, metavar="N", help=does)
    group.add_argument(
        "--logit-bias",
        action="append",
        default=[],
        metavar="ID=BIAS",
        help="add a number to a token's logit, as in 29871=-5; repeatable",
    )
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


def add_text(parser: Parser) -> None:
    """Add the options of every command with a prompt."""
    parser.group("question").add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help="positions in all (default: the model's)"
    )
    parser.group("semantics").add_argument(
        "--template", metavar="NAME|FILE", help="a chat template instead of the file's own: a name, or a file with it"
    )


def add_backend(parser: Parser, *, recorded: bool = False) -> None:
    """Add what computes: --backend, --device and --threads. `recorded`: by default what a record says, and not ours."""
    group = parser.group("computation")
    backend, device, threads = [None] * 3 if recorded else ["torch", "cpu", "as many as speed up this model"]
    said = [f"(default: {default or 'as recorded'})" for default in (backend, device, threads)]
    group.add_argument("--backend", choices=BACKENDS, default=backend, help=f"what computes {said[0]}")
    group.add_argument("--device", choices=DEVICES, default=device, help=f"where it computes {said[1]}")
    group.add_argument("-t", "--threads", type=int, metavar="N", help=f"processor threads {said[2]}")


def add_running(parser: Parser) -> None:
    """Add the options of every command that runs a model."""
    add_backend(parser)
    group = parser.group("computation")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="exact",
        help="exact: float32; fast: kernels for quantised weights; ggml: llama.cpp's own rounding (default: exact)",
    )
    group.add_argument(
        "--weight-cache",
        type=float,
        metavar="GIB",
        help="memory for float32 weights (default: for all, if that takes at most half of the free memory, else 0)",
    )
    group.add_argument("--show-kernels", action="store_true", help="say what multiplies matrices, and what fell back")
    group.add_argument(
        "--check-finite", action="store_true", help="name the first array with NaN or infinity, and stop"
    )
    add_profile(parser)


def add_profile(parser: Parser) -> None:
    """Add --profile and --quirk, which select a known behaviour."""
    group = parser.group("semantics")
    group.add_argument(
        "--profile", choices=PROFILES, default="llava", help="whose known behaviour to follow (default: llava)"
    )
    group.add_argument(
        "--quirk",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one point of it, as in gelu=tanh; repeatable; llava-ref inspect --help lists all",
    )


def sampling(args: argparse.Namespace) -> Sampling:
    """Return the options of `add_sampling`. Raises ParameterError."""
    bias = {}
    for pair in args.logit_bias:
        token, equals, number = pair.partition("=")
        try:
            bias[int(token)] = float(number)
        except ValueError:
            raise ParameterError("--logit-bias", repr(pair), "expected ID=BIAS, as in 29871=-5") from None
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    return Sampling(**given, logit_bias=bias)


def quirks(args: argparse.Namespace) -> dict[str, str]:
    """Parse the values of --quirk. Raises ParameterError."""
    overrides = {}
    for pair in args.quirk:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ParameterError("--quirk", repr(pair), "expected NAME=VALUE, as in gelu=tanh")
        overrides[name] = value
    return overrides


def pair(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return the files to run, by default the embedded pair. Raises ParameterError for an mmproj file alone."""
    if args.model is None and args.mmproj is None:
        return embedded()
    if args.model is None:
        raise ParameterError("--model", "missing", "--mmproj needs the text model that it belongs to")
    return args.model, args.mmproj


def load_model(args: argparse.Namespace, text: Path | None, mmproj: Path | None) -> Llava:
    """Load a model with the options of `add_running`, and of `add_text` if the command has them."""
    cache = args.weight_cache
    if cache is not None and not 0 <= cache <= 1 << 20:  # false for NaN too
        raise ParameterError("--weight-cache", str(cache), "expected a number of GiB from 0")
    model = load(
        text,
        mmproj,
        backend=args.backend,
        device=args.device,
        precision=args.precision,
        profile=args.profile,
        quirks=quirks(args),
        threads=args.threads,
        weight_cache=None if cache is None else int(cache * GIB),
        n_context=getattr(args, "ctx_size", None),
        template=template(getattr(args, "template", None)),
    )
    if args.check_finite:
        model.check_finite()
    if args.show_kernels:
        note(f"[kernels: {model.ops.kernels()}]")
    return model


def template(name: str | None) -> str | Path | None:
    """Return the name of a known template, or the path of a file; `load` refuses a name that is neither.

    Raises ParameterError for a name that is almost that of a file."""
    if name is None or name in TEMPLATES:
        return name
    if os.path.exists(name):
        return Path(name)
    if not nearest(name, TEMPLATES) and (meant := nearest_file(name)):
        raise ParameterError("--template", repr(name), f"no known template, and no such file{meant}")
    return name


def changed(args: argparse.Namespace, **options: Any) -> argparse.Namespace:
    """Return the arguments with some of them changed."""
    return argparse.Namespace(**(vars(args) | options))


def user_message(text: str, images: list[Any]) -> dict[str, Any]:
    """Make a user's message: pictures first, then the text, as LLaVA was trained; a text alone as a string."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}


def messages(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the conversation of -p, --image and --system.

    A prompt that contains <image> once per picture gives their places, as in LLaVA's and llama.cpp's own programs;
    without <image> pictures come first. Raises ParameterError."""
    text, images = checked_text("--prompt", args.prompt), args.image
    system = [] if args.system is None else [{"role": "system", "content": checked_text("--system", args.system)}]
    texts = text.split(IMAGE) if images else [text]
    if len(texts) == 1:
        return [*system, user_message(text, images)]
    if len(texts) != len(images) + 1:
        problem = f"{len(texts) - 1} in the prompt for {len(images)} pictures, expected one for each, or none"
        raise ParameterError("--prompt", IMAGE, problem)
    parts: list[dict[str, Any]] = []
    for piece, image in zip_longest(texts, images):
        parts += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
        parts += [{"type": "image", "image": image}] if image else []
    return [*system, {"role": "user", "content": parts}]


def shown(messages: object, model: Llava, order: ImageOrder) -> str:
    """Return the prompt of a conversation as shown to people, with pictures in the given order."""
    return render_prompt(parse_messages(messages), model.template, model.tokenizer, image_order=order).shown


def checked_text(where: str, text: str) -> str:
    """Return `text`. Raises ParameterError if the argument was not valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(where, f"character {error.start + 1}", "not UTF-8") from None
    return text


def request(args: argparse.Namespace, model: Llava) -> Request:
    """Prepare the prompt of -p, --image, --system and --raw. Raises ParameterError."""
    if args.raw:
        if args.system is not None:
            raise ParameterError("--system", "with --raw", "a raw prompt has no system message, write it into -p")
        return model.raw_request(checked_text("--prompt", args.prompt), args.image)
    return model.request(messages(args))


def about(model: Llava, /, **facts: Any) -> dict[str, str]:
    """Return the header of a file of tensors, which says how they were made. Values that are not text are JSON."""
    return {key: x if isinstance(x, str) else json.dumps(x) for key, x in (model.settings | facts).items()}
