"""Let llama.cpp decode several sequences at once: `alone.py` runs this as its process."""

import ctypes as c
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_ref.benchmark.llama_cpp.library import TokenBatch
from llava_ref.benchmark.llama_cpp.process import LlamaProcess, repetition
from llava_ref.benchmark.llama_cpp.worker import LlamaEngine, main
from llava_ref.benchmark.measure import Repetition

MOST = 8
N_SEQ_MAX = 12  # where llama_context_params has it
Int, Pointer = c.c_int32, c.c_void_p


class Fields(c.Structure):
    """The fields of `llama_batch`."""

    _fields_ = [
        ("n_tokens", Int),
        ("token", c.POINTER(Int)),
        ("embd", Pointer),
        ("pos", c.POINTER(Int)),
        ("n_seq_id", c.POINTER(Int)),
        ("seq_id", c.POINTER(c.POINTER(Int))),
        ("logits", c.POINTER(c.c_int8)),
    ]


class SequencesEngine(LlamaEngine):
    """Decodes a token of each of several sequences in every step, each from an empty context."""

    def _new_context(self) -> Any:
        llama, params = self.llama, self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch = MOST * 256, MOST * 256
        c.c_uint32.from_buffer(params, N_SEQ_MAX).value = MOST
        context = llama.llama_init_from_model(self.model, params)
        llama.llama_set_n_threads(context, self.threads, self.threads)
        return context

    def together(self, n: int, steps: int) -> dict[str, Any]:
        """Run steps of n sequences; every row's logits are computed."""
        llama = self.llama
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        return asdict(self.watch.repetition(lambda: self._steps(n, steps)))

    def _steps(self, n: int, steps: int) -> None:
        ids = [(Int * 1)(i) for i in range(n)]
        rows = (c.POINTER(Int) * n)(*(c.cast(one, c.POINTER(Int)) for one in ids))
        with self.watch.lap("decode"):
            for step in range(steps):
                fields = Fields(
                    n,
                    (Int * n)(*[1] * n),
                    None,
                    (Int * n)(*[step] * n),
                    (Int * n)(*[1] * n),
                    rows,
                    (c.c_int8 * n)(*[1] * n),
                )
                batch = TokenBatch()
                c.memmove(c.byref(batch), c.byref(fields), c.sizeof(fields))
                if status := self.llama.llama_decode(self._context, batch):
                    raise self.llama.failed(f"llama_decode returned {status}")
                self.llama.llama_get_logits_ith(self._context, n - 1)


class Sequences(LlamaProcess):
    """The process that runs it."""

    def __init__(self, text: Path, threads: int) -> None:
        super().__init__(text, None, None, 1, 1, threads, (sys.executable, __file__))

    def together(self, n: int, steps: int) -> Repetition:
        return repetition(self.ask(do="together", n=n, steps=steps))


if __name__ == "__main__":
    main(SequencesEngine)
