"""Record a run while it is made, or make it again as a record says."""

from collections.abc import Callable, Iterator, Sequence

from ..chat.templates import ChatTemplate
from ..generation.answer import Stream, Turn
from ..generation.request import Reply, Request, Step
from ..generation.sampling import Sampling
from ..model import Llava
from ..versions import versions
from .record import FORMAT, NUMBERS, Answered, HashedFile, Record, RunSettings
from .request import RecordedRequest
from .stages import StageHashes


class Recording:
    """The record of one run of a model, as it grows. `sampling` must have its seed: see `Sampling.seeded`.

    `max_tokens`: 0 for a run without an answer, which computes the logits of every position."""

    def __init__(
        self,
        model: Llava,
        asked: RecordedRequest,
        sampling: Sampling,
        max_tokens: int | None,
        stop: Sequence[str],
        template: ChatTemplate | None = None,
    ) -> None:
        """Take what the run is asked. `template`: the one in use, if it is not the model's."""
        self._model, self._asked, self._sampling = model, asked, sampling
        self._max_tokens, self._stop, self._template = max_tokens, list(stop), template or model.template
        self.hashes = StageHashes(model.ops)
        """The probe that must be attached while the run is made."""

    def of(self, stream: Stream, at_end: Callable[[Reply], None]) -> Stream:
        """Attach the probe to one answer among others, which come in between its turns. `at_end` gets the whole of it.

        Nothing that an earlier answer left is reused for it, and it shares no step with another."""
        begin = stream.begin

        def watched() -> Iterator[Step | Turn]:
            turns = begin()
            while True:
                with self._model.probes.attached(self.hashes):
                    turn = next(turns, None)
                if turn is None:
                    return at_end(stream.reply)
                yield turn

        stream.begin = watched
        return stream

    def record(self, files: dict[str, list[HashedFile]], request: Request, reply: Reply | None) -> Record:
        """Return the record of what has run. `reply`: None if there was no answer."""
        grammar = self._sampling.grammar
        return Record(
            format=FORMAT,
            versions=versions() | {"kernels": self._model.ops.kernels()},
            files=files,
            settings=_settings(self._model, self._template),
            asked=self._asked,
            sampling={name: getattr(self._sampling, name) for name in NUMBERS},
            logit_bias={str(token): bias for token, bias in self._sampling.logit_bias.items()},
            wanted=None if grammar is None else grammar.wanted,
            max_tokens=self._max_tokens,
            stop=self._stop,
            prompt_ids=request.token_ids,
            answer=None if reply is None else Answered(list(reply.token_ids), reply.text, str(reply.finish_reason)),
            passes=self.hashes.passes,
        )


def _settings(model: Llava, template: ChatTemplate) -> RunSettings:
    own = {name: model.settings[name] for name in ("backend", "device", "precision", "profile", "quirks")}
    return RunSettings(**own, threads=model.threads, n_context=model.n_context, template=template.source)


def repeat(record: Record, model: Llava) -> Record:
    """Make a record's run again, on a model that was loaded as it says or otherwise; return the new record.

    Raises a LlavaError for what is wrong with the record's request or settings."""
    request, sampling = record.asked.request(model), record.chosen(model)
    recording = Recording(model, record.asked, sampling, record.max_tokens, record.stop)
    with model.probed(recording.hashes):
        if record.max_tokens == 0:
            model.request_logits(request)
            reply = None
        else:
            reply = model.answer(request, sampling, max_tokens=record.max_tokens, stop=record.stop).finish()
    return recording.record(record.files, request, reply)
