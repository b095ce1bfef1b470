"""`check`: tell whether a text model and an mmproj file fit each other, with every reason. Only headers are read."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from .. import gguf
from ..chat.chunks import TextChunk, chunks
from ..chat.messages import ImagePart, Message, TextPart
from ..chat.rendering import render_prompt
from ..chat.templates import choose_template
from ..errors import GGUFError, LlavaError, ParameterError, visible
from ..gguf.file import GGUFFile
from ..loading import embedded
from ..models import holds_tower, text_family, tower_family
from ..models.config import MAX_WIDTH
from ..models.weights import without_ones
from ..ops import get_ops
from ..ops.protocol import Ops
from ..profiles import PROFILES, Quirks
from ..tokenizer.tokenizer import Tokenizer
from . import options
from .facts import image_pipeline, kind
from .output import coloured, print_json, verdict
from .parser import Example, Parser

SAMPLING = ("general.sampling.", "tokenizer.ggml.suppress_tokens")


@dataclass(frozen=True, slots=True)
class FitCheck:
    """Holds the result of one check of a pair. `ok` is None for a note: the pair runs, but the user should know."""

    what: str
    ok: bool | None
    says: str


EXAMPLES: Sequence[Example] = (
    (
        "llava-ref check -m text.gguf --mmproj mmproj.gguf",
        "one line for each check, ok or NO with its reason; exit code 1 if they do not fit",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_json(parser, "print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Return 0 if the files fit each other, else 1. Raises GGUFError (exit code 2) for an unreadable or wrong file."""
    if (args.model is None) != (args.mmproj is None):
        raise ParameterError("--model" if args.model is None else "--mmproj", "missing", "a pair is needed, or neither")
    text, mmproj = (args.model, args.mmproj) if args.model else embedded()
    files = gguf.read(text), gguf.read(mmproj)
    findings = check(*files)
    fits = all(finding.ok is not False for finding in findings)
    if args.json:
        print_json({"fits": fits, "model": str(text), "mmproj": str(mmproj), "checks": [asdict(f) for f in findings]})
    else:
        mark = {True: "ok     ", None: "note   ", False: "NO     "}
        for f in findings:
            line = f"{mark[f.ok]} {f.what:14} {visible(f.says)}"
            print(coloured(line, "red") if f.ok is False else line)
        print(verdict(f"these files {'fit' if fits else 'do not fit'} each other", fits))
    return 0 if fits else 1


def check(text: GGUFFile, mmproj: GGUFFile) -> list[FitCheck]:
    """Run every check of a pair. Raises GGUFError if a file is of the wrong kind."""
    for file, actual, wanted in ((text, kind(text), "text model"), (mmproj, kind(mmproj), "mmproj")):
        if actual != wanted and not (wanted == "mmproj" and holds_tower(file)):
            raise GGUFError(file.path, "kind of file", f"this is {_article(actual)}, expected {_article(wanted)}")
    findings = [_attempt("text model", lambda: _text(text)), _attempt("vocabulary", lambda: _vocabulary(text))]
    if findings[-1].ok is not False:
        findings.append(_attempt("template", lambda: _template(text)))
    if keys := [key for key in text if key.startswith(SAMPLING)]:
        findings.append(
            FitCheck("sampling", None, f"{', '.join(keys)}: defaults of llama.cpp's programs, not of this one")
        )
    findings.append(_attempt("vision tower", lambda: _tower(mmproj)))
    tower = findings[-1].ok is not False
    findings.append(_attempt("width", lambda: _width(text, mmproj)))
    if tower:  # otherwise there is nothing to count
        findings.append(_attempt("feature layer", lambda: _layers(mmproj)))
        findings.append(_attempt("positions", lambda: _positions(text, mmproj)))
    return findings


def _article(name: str) -> str:
    known = {"text model": "a text model", "mmproj": "an mmproj file", "vocabulary": "a vocabulary without weights"}
    return known.get(name, "neither text model nor mmproj")


def _attempt(what: str, test: Callable[[], tuple[bool | None, str]]) -> FitCheck:
    """Run one check; an error of the library is its failure."""
    try:
        return FitCheck(what, *test())
    except LlavaError as error:
        return FitCheck(what, False, f"{error.field}: {error.problem}")


def _text(file: GGUFFile) -> tuple[bool | None, str]:
    c = text_family(file).load(file, _numpy(), Quirks()).config
    shape = f"{c.n_layer} blocks, {c.n_head} heads over {c.n_head_kv}, width {c.width}"
    return True, f"architecture {c.architecture}, {shape}; every tensor has the shape that the metadata asks for"


def _numpy() -> Ops:
    return get_ops("numpy", "cpu", None, 0)


def _vocabulary(file: GGUFFile) -> tuple[bool | None, str]:
    tokenizer = Tokenizer.from_gguf(file)
    ends = ", ".join(tokenizer.text_of(i) for i in sorted(tokenizer.end_ids))
    says = f"{tokenizer.n_vocab:,} tokens, {tokenizer.vocabulary.model}; answers end with {ends or 'nothing'}"
    if not tokenizer.end_ids:
        return None, f"{says}: they go on to the end of the context"
    return (None, "; ".join([says, *tokenizer.notes])) if tokenizer.notes else (True, says)


def _template(file: GGUFFile) -> tuple[bool | None, str]:
    """Render one question with a picture: the template must leave exactly one place for it."""
    tokenizer, template = Tokenizer.from_gguf(file), choose_template(file, has_mmproj=True)
    question = Message("user", (ImagePart(b""), TextPart("What is this?")))
    prompt = render_prompt([question], template, tokenizer, image_order=Quirks().image_order)
    parts = chunks(prompt, tokenizer, Quirks())
    text = sum(len(part.token_ids) for part in parts if isinstance(part, TextChunk))
    says = f"{template.name} ({template.why}); a question with a picture becomes {prompt.shown!r}"
    return True, f"{says}: {text} text tokens and {len(prompt.images)} picture"


def _tower(file: GGUFFile) -> tuple[bool | None, str]:
    c = tower_family(file).load(file, _numpy(), Quirks()).config
    tower = f"{c.n_stored} blocks of width {c.width}, patches of {c.patch_size} pixels"
    return True, f"{tower}; projector {c.projector}; every tensor has the shape that the metadata asks for"


def _width(text: GGUFFile, mmproj: GGUFFile) -> tuple[bool | None, str]:
    """Compare the width of a picture's rows with that of the token embeddings, among which they stand."""
    name, axis = tower_family(mmproj).output(mmproj)
    if name not in mmproj.tensors:
        return False, f"{name}: missing, so the width of a picture's rows is unknown"
    key = f"{text.string('general.architecture')}.embedding_length"
    shape, width = list(without_ones(mmproj.tensors[name].shape)), text.integer(key, 1, MAX_WIDTH)
    rows = shape[axis] if len(shape) > axis else 1
    left, right = f"the projector ends in {name} {shape}: rows of {rows}", f"the text model's {key} is {width}"
    if rows == width:
        return True, f"{left}; {right}: equal"
    return False, f"{left}; {right}: {rows} is not {width}, so this mmproj was made for another text model"


def _layers(file: GGUFFile) -> tuple[bool | None, str]:
    about = image_pipeline(file, Quirks())
    runs, stored = about.get("blocks_run_by_profile"), about["blocks_stored"]
    if runs is None:
        return True, f"every profile runs all {stored} blocks"
    by_profile = ", ".join(f"{name} {n}" for name, n in runs.items())
    if len(set(runs.values())) == 1:
        return True, f"clip.vision.feature_layer is stored: every profile runs {runs['llava']} of {stored} blocks"
    return None, (
        f"clip.vision.feature_layer is not stored; blocks run of {stored}: {by_profile}. Converters drop the blocks "
        "that LLaVA does not use, and llama.cpp then leaves out one more"
    )


def _positions(text: GGUFFile, mmproj: GGUFFile) -> tuple[bool | None, str]:
    about = image_pipeline(mmproj, PROFILES["llava"])
    count = about["tokens_per_image"]
    context = text.integer(f"{text.string('general.architecture')}.context_length", 1, 1 << 24)
    least = about.get("tokens_least", count)
    says = f"a picture takes {f'{least} to ' if least != count else ''}{count} of {context} positions"
    if count < context:
        return True, says
    if least < context:
        return None, f"{says}, by its size: the largest leave no room for a question"
    return False, f"{says}: there is no room for a question"
