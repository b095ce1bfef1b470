"""`Llava`: a text model, a vision tower, or both, behind the interface users call. The only file that sees all parts.

N rows of an image, D decoder width, T positions, V vocabulary, S the tower's picture size in pixels.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from . import images
from .chat.chunks import Prompt, TextChunk, chunks, raw
from .chat.messages import ImagePart, unheard
from .chat.rendering import ChatTemplate, choose_template, parse_messages, render_prompt
from .errors import ImageError, ParameterError, PromptError, printable
from .generation.answer import Clock, Reply, Request, Step, StopStrings, Stream, generate, room, too_long
from .generation.engine import Engine, Part
from .generation.reuse import Reuse, cached_positions
from .generation.sampler import Sampler, Sampling
from .images.preprocess import Preprocessed, preprocess
from .tokenizer.tokenizer import Tokenizer
from .tracing.trace import Edit, Edits, Probe, Probes, Sink, Tap, Trace, no_tap

ImageSource = bytes | str | Path | Image.Image | np.ndarray
Messages = Sequence[Mapping[str, Any]]
P = TypeVar("P", bound=Probe)


class Llava:
    """A loaded model. Calls are independent of each other: every answer starts from an empty context."""

    def __init__(
        self, engine: Engine, settings: dict[str, Any], n_context: int | None, template: str | Path | None
    ) -> None:
        self.engine, self.settings = engine, settings
        self.load_s = 0.0
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        self._n_context = 0
        self._probes = Probes()
        self.reuse: Reuse | None = None
        """Set to a `Reuse`, what one answer has computed serves the next. The answers are the same, bit for bit."""
        if engine.text is not None and engine.text_file is not None:
            if n_context is not None and n_context > engine.text.context:
                raise ParameterError("n_context", str(n_context), f"the model has {engine.text.context} positions")
            self._n_context = n_context or engine.text.context
            self._tokenizer = Tokenizer.from_gguf(engine.text_file)
            self._template = choose_template(engine.text_file, has_mmproj=engine.vision is not None, template=template)

    @property
    def n_context(self) -> int:
        """Positions that prompt and answer have together."""
        return self._n_context

    @property
    def tokenizer(self) -> Tokenizer:
        """PromptError if there is no text model."""
        if self._tokenizer is None:
            raise PromptError("model", "text", "loaded without a text model, so there is nothing to ask")
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The chat template in use: its name, source, and why it was chosen."""
        if self._template is None:
            raise PromptError("model", "text", "loaded without a text model, so there is nothing to ask")
        return self._template

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
    ) -> Reply:
        """The whole answer to a conversation in OpenAI's form. `generation.sampler.Sampling` says what the settings
        mean.

        An answer ends at `max_tokens`, or where the context does, with finish_reason "length"; at a stop string or an
        end-of-generation token with "stop". LlavaError of the part that is wrong, before any work."""
        stream = self.stream(
            messages,
            max_tokens=max_tokens,
            stop=stop,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            logit_bias=logit_bias,
            seed=seed,
        )
        return stream.finish()

    def stream(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
    ) -> Stream:
        """As `chat`, piece by piece: an iterator of strings whose `reply` has the rest."""
        sampling = Sampling(
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias or {},
            seed,
        )
        return self.answer(self.request(messages), sampling, max_tokens=max_tokens, stop=stop)

    def request(self, messages: Messages) -> Request:
        """A conversation as a prompt ready to run, its pictures decoded. Nothing is run."""
        order = self.engine.quirks.image_order
        prompt = render_prompt(parse_messages(messages), self.template, self.tokenizer, image_order=order)
        notes = tuple(f"{printable(path)}: has no effect here" for path in unheard(messages))
        return replace(self.prepared(prompt), notes=notes)

    def raw_request(self, prompt: str, sources: Sequence[ImageSource] = ()) -> Request:
        """A prompt taken as it stands, control tokens included; each `<image>` is one of the pictures, in order."""
        parts = tuple(ImagePart(source, f"images[{i}]") for i, source in enumerate(sources))
        return self.prepared(replace(raw(prompt, len(parts), self.tokenizer), images=parts))

    def prepared(self, prompt: Prompt) -> Request:
        """A rendered prompt as a request: its pictures decoded, its text as tokens. Nothing is run."""
        if prompt.images and self.engine.vision is None:
            where = prompt.images[0].where
            raise PromptError(where, "image", "the model was loaded without an mmproj file and cannot see pictures")
        began = time.perf_counter()
        decoded = tuple(self._decoded(part) for part in prompt.images)
        seconds = time.perf_counter() - began
        parts = tuple(chunks(prompt, self.tokenizer, self.engine.quirks))
        return Request(prompt, parts, decoded, self.tokens_per_image, seconds)

    def _decoded(self, part: ImagePart) -> images.DecodedImage:
        image = self.decode_image(part.source, part.where)
        if part.detail is None:
            return image
        warning = (
            f"{part.where}: detail {printable(part.detail, 40)!r} has no effect, every picture is seen at one size"
        )
        return replace(image, warnings=(*image.warnings, warning))

    @property
    def tokens_per_image(self) -> int:
        """Positions that one picture takes; 0 without an mmproj file."""
        return self.engine.vision.n_patches if self.engine.vision is not None else 0

    def count_tokens(self, messages: Messages) -> int:
        """Positions the prompt takes, pictures included. Nothing is run."""
        return len(self.request(messages).token_ids)

    def answer(
        self, request: Request, sampling: Sampling, *, max_tokens: int | None = None, stop: Sequence[str] = ()
    ) -> Stream:
        """Starts an answer to a prepared prompt. Settings and the context are checked here, before any work."""
        clock = Clock(load_s=self.load_s, preprocess_s=request.decode_s)
        ids = request.token_ids
        limit = room(len(ids), self.n_context, max_tokens)
        sampler = Sampler(sampling, self.tokenizer.n_vocab, [token for token in ids if token >= 0], limit)
        stops, at_start = StopStrings(stop), not request.continues

        def begin() -> Iterator[Step]:
            parts, reuse = self._parts(request, clock), self._reuse()
            session = (reuse and reuse.take_session()) or self.engine.session(self.n_context, self._probes)
            rest = session.rewind(parts)
            clock.cached_tokens = cached_positions(parts, clock.cached_rows, session.n_past)
            try:
                decoder = self.tokenizer.stream(at_start=at_start)
                yield from generate(session, rest, sampler, decoder, self.tokenizer.end_ids, stops, limit)
            finally:
                if reuse is not None and not session.watched:
                    reuse.keep_session(session)

        return Stream(request, clock, begin)

    def _reuse(self) -> Reuse | None:
        """What may be reused now: nothing while somebody watches, who is to see everything computed."""
        return None if self._probes.complete else self.reuse

    def parts(self, request: Request) -> list[Part]:
        """A prepared prompt as `forward` takes it: token ids and image rows (N, D), in order. Pictures are encoded."""
        return self._parts(request, Clock())

    def _parts(self, request: Request, clock: Clock) -> list[Part]:
        rows = [self._rows(image, clock) for image in request.images]
        return [chunk.token_ids if isinstance(chunk, TextChunk) else rows[chunk.index] for chunk in request.chunks]

    def _rows(self, image: images.DecodedImage, clock: Clock) -> np.ndarray:
        reuse = self._reuse()
        kept = None if reuse is None else reuse.rows(image.rgb)
        if kept is not None:
            clock.cached_rows.append(kept)
            return kept
        began, tap = time.perf_counter(), self._probes.tap(object())
        pixels = self.preprocess(image, tap).pixels[0]
        ready = time.perf_counter()
        rows = self.engine.encode(pixels, tap)
        clock.preprocess_s += ready - began
        clock.encode_s += time.perf_counter() - ready
        if reuse is not None:
            reuse.keep_rows(image.rgb, rows)
        return rows

    def logits(self, prompt: str, images: Sequence[ImageSource] = ()) -> np.ndarray:
        """Logits at every position of a prompt taken as it stands, (T, V) float32; `<image>` marks a picture."""
        return self.request_logits(self.raw_request(prompt, images))

    def request_logits(self, request: Request) -> np.ndarray:
        """Logits at every position of a prepared prompt, (T, V) float32. PromptError if it does not fit the context."""
        self._check_room(request)
        return self.forward(self.parts(request))

    def each_logits(self, request: Request) -> Iterator[np.ndarray]:
        """The same, (V,) of one position after the other: memory never holds all of them."""
        self._check_room(request)
        yield from self.engine.session(self.n_context, self._probes).each(self.parts(request))

    def _check_room(self, request: Request) -> None:
        if len(request.token_ids) > self.n_context:
            raise too_long(len(request.token_ids), self.n_context)

    def forward(self, parts: Sequence[Part]) -> np.ndarray:
        """Logits at every position of token ids and image rows (n, D), in order, from an empty context: (T, V)."""
        if self.engine.text is None:
            raise PromptError("model", "text", "loaded without a text model, so there are no logits")
        return self.engine.session(self.n_context, self._probes).feed(parts, all_logits=True)

    def decode_image(self, source: ImageSource, where: str = "image") -> images.DecodedImage:
        """A picture as the profile reads it. ImageError names the file, or `where` if there is none."""
        path = str(source) if isinstance(source, str | Path) else None
        quirks = self.engine.quirks
        try:
            return images.load(source, exif=quirks.exif, alpha=quirks.alpha, where=path or where)
        except ImageError as error:
            if error.field != path:
                raise
            raise ImageError(path, "file", error.problem, code=error.code) from None

    def preprocess(self, image: images.DecodedImage, tap: Tap = no_tap) -> Preprocessed:
        """What the tower is shown: `pixels` (1, 3, S, S) float32. ParameterError without an mmproj file."""
        if self.engine.vision is None:
            raise ParameterError("mmproj", "missing", "a vision tower is needed for this")
        return preprocess(image.rgb, self.engine.vision, self.engine.quirks, tap)

    def encode_image(self, image: ImageSource) -> np.ndarray:
        """Bytes, a path, a PIL image or an array -> the rows that stand in for the picture, (N, D) float32."""
        return self._rows(self.decode_image(image), Clock())

    def stages(self) -> tuple[str, ...]:
        """Names of all arrays that a run of this pair computes, in order; `models.stages.Stage` says what each is."""
        return tuple(stage.name for stage in self.engine.stages())

    def trace(self, *globs: str, sink: Sink | None = None) -> AbstractContextManager[Trace]:
        """`with model.trace("vision.*", "blk.3.*") as trace:` keeps the arrays of those names, as numpy: see `Trace`.

        Without a name, everything but the attention weights: those are computed only for a name that says
        `kq_soft_max`. ParameterError for a name that fits no stage."""
        return self.probed(Trace(globs or ("*",), self.engine.ops, sink))

    def intervene(self, functions: Mapping[str, Edit]) -> AbstractContextManager[Edits]:
        """`with model.intervene({"blk.3.out": function}):` puts `function(x)`, or `function(x, at)`, in the place of x.

        It sees a prompt whole, whatever its length and however many pictures: `x[-1]` is the prompt's last position. In
        an answer it then sees one row for each token. `at` says which positions: see `At` and `Edits`."""
        return self.probed(Edits(functions, self.engine.ops))

    @contextmanager
    def probed(self, probe: P) -> Iterator[P]:
        """Everything that runs inside the block is shown to `probe`. ParameterError for a name that fits no stage."""
        names = self.stages()
        for glob in probe.globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ParameterError("stage", repr(glob), f"fits none of this model's, which are {_examples(names)}")
        self._probes.add(probe)
        try:
            yield probe
        finally:
            self._probes.remove(probe)

    def unembed(self, hidden: np.ndarray) -> np.ndarray:
        """The final norm and the output matrix over hidden states of any layer, (T, D) -> (T, V) float32."""
        if self.engine.text is None:
            raise PromptError("model", "text", "loaded without a text model, so there are no logits")
        return self.engine.unembed(hidden)


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f", ... {names[-1]} ({len(names)} in all)"
