"""Make prompts of conversations, ready to run: rendered, tokenised, their pictures placed and decoded."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import images
from ..chat.chunks import Prompt, check_beside, chunks, raw
from ..chat.messages import ImagePart, parse_messages, unheard
from ..chat.rendering import render_prompt
from ..chat.templates import ChatTemplate
from ..errors import PromptError, printable
from ..images import DecodedImage, ImageSource
from ..models.family import Tower
from ..profiles import Quirks
from ..tokenizer.tokenizer import Tokenizer
from .request import Request, too_long

Messages = Sequence[Mapping[str, Any]]


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
        return replace(self.prepared(self._rendered(messages)), notes=notes)

    def raw(self, prompt: str, sources: Sequence[ImageSource]) -> Request:
        """Take a prompt as it stands, control tokens included; each `<image>` is one of the pictures, in order."""
        parts = tuple(ImagePart(source, f"images[{i}]") for i, source in enumerate(sources))
        return self.prepared(replace(raw(prompt, len(parts), self.tokenizer), images=parts))

    def count(self, messages: Messages) -> int:
        """Return the positions that the prompt takes, pictures included. Nothing is decoded."""
        return len(self._placed(self._rendered(messages)).token_ids)

    def prepared(self, prompt: Prompt) -> Request:
        """Make a request of a rendered prompt.

        Raises PromptError where it does not fit the context, before any picture is decoded."""
        request = self._placed(prompt)
        if len(request.token_ids) > self.n_context:
            raise too_long(len(request.token_ids), self.n_context)
        began = time.perf_counter()
        decoded = tuple(self._decoded(part) for part in prompt.images)
        return replace(request, images=decoded, decode_s=time.perf_counter() - began)

    def _rendered(self, messages: Messages) -> Prompt:
        order = self.quirks.image_order
        return render_prompt(parse_messages(messages), self.template, self.tokenizer, image_order=order)

    def _placed(self, prompt: Prompt) -> Request:
        """Return a request without its pictures: their places are known from their sizes."""
        if prompt.images and self.tower is None:
            where = prompt.images[0].where
            raise PromptError(where, "image", "the model was loaded without an mmproj file and cannot see pictures")
        if self.tower is not None:
            check_beside(prompt, self.tower.MARKERS)
        sizes = [images.measure(part.source, part.where, exif=self.quirks.exif) for part in prompt.images]
        spans = tuple(self.tower.span(*size) for size in sizes) if self.tower is not None else ()
        stretches = [span.stretches for span in spans]
        return Request(prompt, tuple(chunks(prompt, self.tokenizer, self.quirks, stretches)), spans=spans)

    def _decoded(self, part: ImagePart) -> DecodedImage:
        image = decode_image(part.source, self.quirks, part.where)
        if part.detail is None:
            return image
        detail = printable(part.detail, 40)
        warning = f"{part.where}: detail {detail!r} has no effect, every picture is seen at one size"
        return replace(image, warnings=(*image.warnings, warning))


def decode_image(source: ImageSource, quirks: Quirks, where: str) -> DecodedImage:
    """Read a picture as `quirks` say. Raises ImageError with the file, or `where` if there is none."""
    return images.load(source, exif=quirks.exif, alpha=quirks.alpha, where=where)
