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
from ..errors import ParameterError
from ..generation.request import Request
from ..generation.sampling import Sampling
from ..loading import embedded, load
from ..model import Llava
from ..ops import PRECISIONS
from ..profiles import PROFILES, QUIRKS, ImageOrder
from ..tokenizer.quote import IMAGE
from .output import note

GIB = 1 << 30
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


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add -m, the text model."""
    parser.add_argument("-m", "--model", type=Path, metavar="TEXT.gguf", help="text model (default: the embedded one)")


def add_mmproj(parser: argparse.ArgumentParser) -> None:
    """Add --mmproj, the vision tower and projector."""
    parser.add_argument(
        "--mmproj", type=Path, metavar="MMPROJ.gguf", help="vision tower and projector (default: the embedded one)"
    )


def add_profile(parser: argparse._ActionsContainer) -> None:
    """Add --profile and --quirk, which select a known behaviour."""
    parser.add_argument("--profile", choices=PROFILES, default="llava", help="known behaviour (default: llava)")
    every = ", ".join(f"{name}={'|'.join(row.values)}" for name, row in QUIRKS.items())
    parser.add_argument(
        "--quirk", action="append", default=[], metavar="NAME=VALUE", help=f"change one of its quirks: {every}"
    )


def add_running(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that runs a model, as a group."""
    parser = command.add_argument_group("how it is computed")
    parser.add_argument("--backend", choices=("torch", "numpy"), default="torch", help="default: torch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "-t", "--threads", type=int, metavar="N", help="processor threads (default: as many as speed up this model)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="exact", help="default: exact")
    parser.add_argument(
        "--weight-cache",
        type=float,
        metavar="GIB",
        help="memory for float32 weights (default: for all, if that takes at most half of the free memory, else 0)",
    )
    parser.add_argument("--show-kernels", action="store_true", help="say what multiplies matrices, and what fell back")
    add_profile(parser)


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command with a prompt."""
    parser.add_argument("-c", "--ctx-size", type=int, metavar="N", help="positions in all (default: the model's)")
    parser.add_argument(
        "--template", metavar="NAME|FILE", help="a chat template instead of the file's own: a name, or a file with it"
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add --image, which is repeatable."""
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help="a picture; repeatable")


def add_prompt(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that `request` reads, besides --image."""
    parser.add_argument(
        "-p",
        "--prompt",
        required=required,
        metavar="TEXT",
        help="the question; pictures come before it, or in place of each <image> in it",
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--raw", action="store_true", help="use the prompt without a template; each <image> in it is a picture"
    )


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Add the options of sampling and of the end of an answer, as a group."""
    parser = command.add_argument_group("how tokens are chosen")
    parser.add_argument("-n", "--max-tokens", type=int, metavar="N", help="default: to the end of the context")
    for setting in fields(Sampling):
        if setting.name in FLAGS:
            kind = float if isinstance(setting.default, float) else int
            does = setting.metadata["does"]
            parser.add_argument(FLAGS[setting.name], dest=setting.name, type=kind, metavar="N", help=does)
    parser.add_argument("--logit-bias", action="append", default=[], metavar="ID=BIAS", help="repeatable")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


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
    if args.show_kernels:
        note(f"[kernels: {model.ops.kernels()}]")
    return model


def template(name: str | None) -> str | Path | None:
    """Return the name of a known template, or the path of a file. `load` refuses a name that is neither."""
    return Path(name) if name is not None and name not in TEMPLATES and os.path.exists(name) else name


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


def shown(args: argparse.Namespace, model: Llava, order: ImageOrder) -> str:
    """Return the prompt as shown to people, with pictures in the given order."""
    parsed = parse_messages(messages(args))
    return render_prompt(parsed, model.template, model.tokenizer, image_order=order).shown


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
