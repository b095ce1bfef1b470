"""Run the stages of an answer: a picture preprocessed and encoded, a prompt prefilled, tokens decoded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ParameterError
from ..generation.sampler import Sampler
from ..generation.sampling import Sampling
from ..model import Llava
from .measure import Stopwatch

STAGES = ("preprocess", "encode", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Workload:
    """What one repetition does, always the same."""

    image: Path | None
    """The picture; None for a model without a tower."""
    n_prompt: int
    n_gen: int
    """Tokens decoded behind the prompt, the likeliest each."""

    def check(self, model: Llava) -> None:
        """Raise ParameterError where prompt and tokens do not fit the model's context."""
        if self.n_prompt + self.n_gen > model.n_context:
            problem = f"with {self.n_gen} tokens behind it does not fit the context of {model.n_context}"
            raise ParameterError("--n-prompt", str(self.n_prompt), problem)

    def prompt(self, model: Llava) -> list[int]:
        """Return the token ids of the prompt: random ones, the same in every run."""
        return np.random.default_rng(0).integers(0, model.tokenizer.n_vocab, self.n_prompt).tolist()

    def run(self, model: Llava, prompt: list[int], watch: Stopwatch) -> list[int]:
        """Run every stage once; return the tokens that were chosen behind the prompt."""
        if self.image is not None:
            with watch.lap("preprocess"):
                picture = model.preprocess(model.decode_image(self.image))
            with watch.lap("encode"):
                model.encode(picture.pixels, picture.source)
        session, tokens = model.session(), list[int]()
        sampler = Sampler(Sampling(), model.tokenizer.n_vocab, prompt, self.n_gen)
        with watch.lap("prefill"):
            logits = session.next([prompt])
        with watch.lap("decode"):
            for _ in range(self.n_gen):
                tokens.append(sampler.pick(logits))
                logits = session.next([tokens[-1:]])
        return tokens
