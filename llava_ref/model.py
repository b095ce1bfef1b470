"""`Llava`: the interface that users call. A network, with its vocabulary and chat template: words in, words out.

T positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from .chat.chunks import Prompt
from .chat.templates import ChatTemplate, choose_template
from .generation.answer import Answer, Stream, Turn, answered
from .generation.prompts import Asked, Messages, Prompts
from .generation.request import Clock, Reply, Request, Step, remaining
from .generation.reuse import cached_positions
from .generation.run import PromptRun, position_strings
from .generation.sampler import Sampler
from .generation.sampling import Sampling, SamplingOptions
from .generation.stops import StopStrings
from .generation.units import Part
from .images import ImageSource
from .models.family import TextModel, Tower
from .network import Network, no_text
from .profiles import Quirks
from .tokenizer.tokenizer import Tokenizer


class Llava(Network):
    """A loaded model. Calls are independent of each other: every answer starts from an empty context."""

    def __init__(
        self, text: TextModel | None, tower: Tower | None, quirks: Quirks, settings: dict[str, Any],
        n_context: int | None, template: str | Path | None,
    ) -> None:  # fmt: skip
        """Put the halves together; one may be missing. Raises ParameterError for a context that is too long."""
        super().__init__(text, tower, quirks, settings, n_context)
        self.load_s = 0.0
        self.threads: int | None = None
        """Processor threads asked for; None: as many as a pass is worth."""
        self._prompts: Prompts | None = None
        if text is not None:
            tokenizer = Tokenizer.from_gguf(text.file)
            chosen = choose_template(text.file, has_mmproj=tower is not None, template=template)
            self._prompts = Prompts(tokenizer, chosen, tower, quirks, self.n_context)

    def facts(self) -> dict[str, str]:
        """Return the lines that describe the model to a reader, by their titles."""
        return super().facts() | ({} if self._prompts is None else {"template": self._prompts.template.name})

    @property
    def prompts(self) -> Prompts:
        """Return what makes prompts of conversations. Raises PromptError if there is no text model."""
        if self._prompts is None:
            raise no_text()
        return self._prompts

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Raises PromptError if there is no text model."""
        return self.prompts.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """Return the chat template in use. Raises PromptError if there is no text model."""
        return self.prompts.template

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Reply:
        """Return the whole answer to a conversation in OpenAI's form; `generation.sampling.Sampling` has the settings.

        An answer ends at `max_tokens`, or where the context does, with finish_reason "length"; at a stop string or an
        end-of-generation token with "stop". Raises a LlavaError for what is wrong, before any work."""
        return self.stream(messages, max_tokens=max_tokens, stop=stop, **sampling).finish()

    def stream(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Return the answer of `chat` piece by piece: an iterator of strings whose `reply` has the rest."""
        return self.answer(self.request(messages), Sampling.of(**sampling), max_tokens=max_tokens, stop=stop)

    def request(self, messages: Messages) -> Request:
        """Return a conversation as a prompt ready to run, its pictures decoded. Nothing is run."""
        return self.prompts.request(messages)

    def raw_request(self, prompt: str, sources: Sequence[ImageSource] = ()) -> Request:
        """Take a prompt as it stands, control tokens included; each `<image>` is one of the pictures, in order."""
        return self.prompts.raw(prompt, sources)

    def prepared(self, prompt: Prompt) -> Request:
        """Make a request of a rendered prompt. Raises PromptError, before a picture is decoded, for one too long."""
        return self.prompts.prepared(prompt)

    def count_tokens(self, messages: Messages) -> int:
        """Return the positions that the prompt takes, pictures included. Nothing is decoded or run."""
        return self.prompts.count(messages)

    def answer(
        self, request: Request, sampling: Sampling, *, max_tokens: int | None = None, stop: Sequence[str] = ()
    ) -> Stream:
        """Begin an answer to a prepared prompt. Settings and the context are checked here, before any work."""
        clock = Clock(load_s=self.load_s, preprocess_s=request.decode_s)
        ids = request.token_ids
        limit = remaining(len(ids), self.n_context, max_tokens)
        sampler = Sampler(sampling, self.text.config.n_vocab, [token for token in ids if token >= 0], limit)
        stops = StopStrings(stop)

        def turns() -> Iterator[Step | Turn]:
            rows = []
            for image in request.images:
                yield Turn.PROMPT
                rows.append(self._rows(image, clock))
            parts, reuse = request.parts(rows), self._reuse()
            session = (reuse and reuse.take_session(parts)) or self.session()
            try:
                rest = session.rewind(parts)
                clock.cached_tokens = cached_positions(parts, clock.cached_rows, session.n_past)
                control = sampling.grammar is not None and sampling.grammar.control
                decoder = self.tokenizer.stream(special=control, at_start=not request.continues)
                yield from answered(Answer(rest, sampler, decoder, stops, self.tokenizer.end_ids, limit), session)
            finally:
                session.stop()
                if reuse is not None:
                    reuse.give_back(session)

        return Stream(request, clock, turns)

    def parts(self, request: Request) -> list[Part]:
        """Return a prepared prompt as `forward` takes it: token ids and image rows (N, D), in order."""
        return request.parts([self._rows(image, Clock()) for image in request.images])

    def run(self, prompt: Asked, images: Sequence[ImageSource] = (), names: str | Sequence[str] = "*") -> PromptRun:
        """Run a prompt once; return its logits, the stages whose names match `names`, and a text for each position.

        `prompt`: a text taken as it stands, with `<image>` for each of `images`; token ids, with -1 for each row of a
        picture, as `token_ids` of a run has them; a conversation in OpenAI's form, or a `Request`, with pictures of
        their own. The default keeps everything but attention weights, which a name that says `kq_soft_max` asks for.
        Raises a LlavaError for what is wrong with any of it."""
        request = self.prompts.of(prompt, images)
        with self.trace(*([names] if isinstance(names, str) else names)) as trace:
            logits = self.request_logits(request)
        return PromptRun(request, logits, trace, tuple(self.strings(request)))

    def strings(self, prompt: Asked, images: Sequence[ImageSource] = ()) -> list[str]:
        """Return a text for each position of a prompt of any form that `run` takes: the token's own, or the place of a
        picture's row, `<image 0 row 3, col 5>`, with its tile where there are several."""
        request = self.prompts.of(prompt, images)
        return position_strings(request, [self.preprocess(image) for image in request.images], self.tokenizer)

    def logits(self, prompt: Asked, images: Sequence[ImageSource] = ()) -> np.ndarray:
        """Return logits at every position of a prompt, (T, V) float32; `prompt` in any form that `run` takes."""
        return self.request_logits(self.prompts.of(prompt, images))

    def request_logits(self, request: Request) -> np.ndarray:
        """Return logits at every position of a prepared prompt, (T, V) float32."""
        return self.forward(self.parts(request))

    def each_logits(self, request: Request) -> Iterator[np.ndarray]:
        """Yield the same, (V,) of one position after the other: memory never holds all of them."""
        yield from self.session().each(self.parts(request))
