"""Make prompts of conversations, ready to run: rendered, tokenised, their pictures placed and decoded."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, cast

import numpy as np

from .. import images
from ..chat.calls import Tool
from ..chat.chunks import ImageChunk, Prompt, TextChunk, check_beside, chunks, raw
from ..chat.messages import ImagePart, Message, parse_messages, unheard
from ..chat.rendering import render_prompt
from ..chat.templates import ChatTemplate
from ..errors import PromptError, printable
from ..images import DecodedImage, ImageSource
from ..models.family import Span, Tower
from ..profiles import Quirks
from ..tokenizer.quote import IMAGE, Quote
from ..tokenizer.tokenizer import Tokenizer
from .request import Request, too_long

Messages = Sequence[Mapping[str, Any] | Message]
Asked = str | Sequence[int] | np.ndarray | Messages | Request
"""What a model can be run on: see `Prompts.of`."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model's prompts are made with. `tower` is None for a model that sees no pictures."""

    tokenizer: Tokenizer
    template: ChatTemplate
    tower: Tower | None
    quirks: Quirks
    n_context: int

    def request(self, messages: Messages) -> Request:
        """Return a conversation as a prompt ready to run, its pictures decoded."""
        notes = tuple(f"{printable(path)}: has no effect here" for path in unheard(messages))
        return replace(self.conversation(parse_messages(messages)), notes=notes)

    def conversation(
        self,
        messages: Sequence[Message],
        template: ChatTemplate | None = None,
        *,
        add: bool = True,
        continues: bool = False,
        tools: Sequence[Tool] = (),
    ) -> Request:
        """Return parsed messages as a prompt ready to run. `template`: another than the model's; `add`: whether it
        begins a new answer; `continues`: whether the answer goes on with the last message; `tools`: functions that the
        model may call."""
        prompt = self.rendered(messages, template, tools, add_generation_prompt=add, continue_final_message=continues)
        return replace(self.prepared(prompt), continues=continues)

    def raw(self, prompt: str, sources: Sequence[ImageSource]) -> Request:
        """Take a prompt as it stands, control tokens included; each `<image>` is one of the pictures, in order."""
        parts = tuple(ImagePart(source, f"images[{i}]") for i, source in enumerate(sources))
        return self.prepared(replace(raw(prompt, len(parts), self.tokenizer), images=parts))

    def of(self, prompt: Asked, sources: Sequence[ImageSource] = ()) -> Request:
        """Return any form of a prompt, ready to run: a text taken as it stands, with `<image>` for each picture; token
        ids, with -1 for each row of a picture, as `Request.token_ids` has them; or a conversation in OpenAI's form,
        which brings its own pictures, as does a `Request`. Raises PromptError."""
        if isinstance(prompt, str):
            return self.raw(prompt, sources)
        if not isinstance(prompt, Request) and not any(isinstance(part, Mapping) for part in prompt):
            return self.ids(cast(Sequence[int], prompt), sources)
        if sources:
            raise PromptError("prompt", "images", "given beside a conversation, expected its pictures inside of it")
        return prompt if isinstance(prompt, Request) else self.request(cast(Messages, prompt))

    def ids(self, ids: Sequence[int], sources: Sequence[ImageSource]) -> Request:
        """Take token ids as they stand; the rows of the pictures, in order, are where -1 is. Raises PromptError."""
        numbers = [int(token) for token in ids]
        for at, token in enumerate(numbers):
            if not -1 <= token < self.tokenizer.n_vocab:
                raise PromptError("prompt", f"ids[{at}]", f"{token}, expected 0 to {self.tokenizer.n_vocab - 1}, or -1")
        texts = [
            IMAGE if picture else self.tokenizer.decode(run, special=True)
            for picture, run in groupby(numbers, lambda token: token < 0)
        ]
        parts = tuple(ImagePart(source, f"images[{i}]") for i, source in enumerate(sources))
        prompt = Prompt("".join(texts), Quote("", 0), parts)
        spans = self._spans(prompt)
        return self._decoded_all(Request(prompt, tuple(_chunks_of(numbers, spans)), spans=spans))

    def count(self, messages: Messages) -> int:
        """Return the positions that the prompt takes, pictures included. Nothing is decoded."""
        return len(self._placed(self.rendered(parse_messages(messages))).token_ids)

    def prepared(self, prompt: Prompt) -> Request:
        """Make a request of a rendered prompt.

        Raises PromptError where it does not fit the context, before any picture is decoded."""
        return self._decoded_all(self._placed(prompt))

    def _decoded_all(self, request: Request) -> Request:
        if len(request.token_ids) > self.n_context:
            raise too_long(len(request.token_ids), self.n_context)
        began = time.perf_counter()
        decoded = tuple(self._decoded(part) for part in request.prompt.images)
        return replace(request, images=decoded, decode_s=time.perf_counter() - began)

    def rendered(
        self,
        messages: Sequence[Message],
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
        **options: bool,
    ) -> Prompt:
        """Return parsed messages as the text of a prompt; `options` and errors: those of `render_prompt`."""
        chosen, order = template or self.template, self.quirks.image_order
        return render_prompt(messages, chosen, self.tokenizer, image_order=order, tools=tools, **options)

    def _placed(self, prompt: Prompt) -> Request:
        """Return a request without its pictures: their places are known from their sizes."""
        spans = self._spans(prompt)
        if self.tower is not None:
            check_beside(prompt, self.tower.MARKERS)
        stretches = [span.stretches for span in spans]
        return Request(prompt, tuple(chunks(prompt, self.tokenizer, self.quirks, stretches)), spans=spans)

    def _spans(self, prompt: Prompt) -> tuple[Span, ...]:
        if self.tower is None:
            if prompt.images:
                problem = "the model was loaded without an mmproj file and cannot see pictures"
                raise PromptError(prompt.images[0].where, "image", problem)
            return ()
        sizes = [images.measure(part.source, part.where, exif=self.quirks.exif) for part in prompt.images]
        return tuple(self.tower.span(*size) for size in sizes)

    def _decoded(self, part: ImagePart) -> DecodedImage:
        image = decode_image(part.source, self.quirks, part.where)
        if part.detail is None:
            return image
        detail = printable(part.detail, 40)
        warning = f"{part.where}: detail {detail!r} has no effect, every picture is seen at one size"
        return replace(image, warnings=(*image.warnings, warning))


def _chunks_of(ids: Sequence[int], spans: Sequence[Span]) -> Iterator[TextChunk | ImageChunk]:
    """Yield the chunks of token ids in which -1 stands for each row of a picture. Raises PromptError for a number of
    them that is not that of the pictures' rows."""
    rows, wanted = ids.count(-1), sum(span.n_rows for span in spans)
    if rows != wanted:
        raise PromptError("prompt", "ids", f"-1 stands {rows} times, expected {wanted}, one for each row of a picture")
    places = iter([(index, row) for index, span in enumerate(spans) for row in range(span.n_rows)])
    for is_picture, run in groupby(ids, lambda token: token < 0):
        if not is_picture:
            yield TextChunk(tuple(run))
            continue
        for index, found in groupby([next(places) for _ in run], lambda place: place[0]):
            first, *_ = numbers = [row for _, row in found]
            yield ImageChunk(index, first, first + len(numbers))


def decode_image(source: ImageSource, quirks: Quirks, where: str) -> DecodedImage:
    """Read a picture as `quirks` say. Raises ImageError with the file, or `where` if there is none."""
    return images.load(source, exif=quirks.exif, alpha=quirks.alpha, where=where)
