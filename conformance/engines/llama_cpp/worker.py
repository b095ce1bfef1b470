"""Run llama.cpp on the jobs of one folder and leave the results there: a process of its own, as llama.cpp may crash.

`python -m llava_ref.conformance.engines.llama_cpp.worker FOLDER` reads `request.json` (paths, settings, jobs) and
`request.npz` (the arrays that jobs name) and writes `result.npz` and `result.json`: `oracle` documents the jobs. T
positions, D decoder width, V vocabulary.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .fed import Fed
from .library import LlamaLibrary
from .watch import GraphWatch, Job

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]  # facts, and arrays


class LlamaWorker:
    """Run jobs on one text model and, if the request names one, a vision tower, with contexts as the settings say."""

    def __init__(self, request: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.llama = LlamaLibrary()
        self.ffi, self.lib = self.llama.ffi, self.llama.lib
        self.settings, self.arrays = request["settings"], arrays
        self.watch = GraphWatch(self.llama)
        self.lib.llama_backend_init()
        if request["text"]:
            self._load_text(request["text"])
        self.vision: Any = None
        self.whole_pictures = False  # whether rows of a picture see one another, as mtmd says of the projector
        self.grid_positions = False  # whether they have positions of time, y and x, as mtmd says of the text model
        if request["mmproj"]:
            self._load_vision(request["mmproj"])

    def _load_text(self, path: str) -> None:
        _say(f"loading {Path(path).name}")
        params = self.llama.defaults["model"]
        params.n_gpu_layers, params.use_extra_bufts = 0, self.settings["extra_buffers"]
        self.model = self.lib.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise self._failed(f"cannot load {Path(path).name}")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab, self.width = self.lib.llama_vocab_n_tokens(self.vocab), self.lib.llama_model_n_embd(self.model)

    def _load_vision(self, path: str) -> None:
        _say(f"loading {Path(path).name}")
        params = self.llama.defaults["mtmd"]
        params.use_gpu, params.print_timings, params.warmup = False, False, self.settings["warmup"]
        params.flash_attn_type, params.n_threads = self.settings["flash_attention"], self.settings["threads"]
        params.cb_eval = self.watch.callback
        self.vision = self.lib.mtmd_init_from_file(path.encode(), self.model, params)
        if not self.vision:
            raise self._failed(f"cannot load {Path(path).name}")
        self.whole_pictures = self.lib.mtmd_decode_use_non_causal(self.vision, self.ffi.NULL)
        self.grid_positions = self.lib.mtmd_decode_use_mrope(self.vision)

    def _failed(self, what: str) -> RuntimeError:
        return RuntimeError("; ".join([what, *self.llama.log[-2:]]))

    @contextmanager
    def context(self, parts: list[Fed], greedy: int) -> Iterator[Any]:
        """Make an empty context for one job, as large as the settings say, or larger if these parts need it."""
        s, params = self.settings, self.llama.defaults["context"]
        lengths = [len(part.values) for part in parts]
        params.n_ctx, params.n_batch = max(s["context"], sum(lengths) + greedy), max([s["batch"], *lengths])
        params.n_ubatch = s["micro_batch"]
        params.n_threads = params.n_threads_batch = s["threads"]
        params.flash_attn_type, params.type_k, params.type_v = s["flash_attention"], s["cache_type"], s["cache_type"]
        params.cb_eval = self.watch.callback
        context = self.lib.llama_init_from_model(self.model, params)
        if not context:
            raise self._failed("cannot make a context")
        yield context
        self.lib.llama_free(context)

    def feed(self, context: Any, part: Fed, n_past: int) -> np.ndarray:
        """Decode token ids or embeddings at the next positions -> logits (T, V)."""
        values = part.values
        rows = values.ndim == 2
        batch = self.lib.llama_batch_init(len(values), self.width if rows else 0, 1)
        if rows:
            self._fill(batch.embd, np.ascontiguousarray(values, np.float32))
        else:
            self._fill(batch.token, np.ascontiguousarray(values, np.int32))
        batch.n_tokens = len(values)
        for i in range(len(values)):
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = n_past + i, 1, 0, 1
        own = batch.pos
        turned = self._positions(part, n_past) if rows and self.grid_positions else own
        batch.pos = turned
        if whole := rows and self.whole_pictures:  # only then: a file may itself say that its model is not causal
            self.lib.llama_set_causal_attn(context, False)
        status = self.lib.llama_decode(context, batch)
        if whole:
            self.lib.llama_set_causal_attn(context, True)
        batch.pos = own
        self.lib.llama_batch_free(batch)
        if status:
            raise self._failed(f"llama_decode returned {status}")
        return self._floats(self.lib.llama_get_logits(context), (len(values), self.n_vocab))

    def _positions(self, part: Fed, n_past: int) -> Any:
        """Return the positions of a picture's rows, section by section, as mtmd-helper's decode_embd_batch has them."""
        if part.positions is None:
            raise RuntimeError("rows without a grid, expected (rows, columns, width)")
        found = np.ascontiguousarray(part.positions + [[n_past], [n_past], [n_past], [0]], np.int32)
        turned = self.ffi.new("llama_pos[]", found.size)
        self._fill(turned, found)
        return turned

    def _fill(self, target: Any, values: np.ndarray) -> None:
        self.ffi.memmove(target, self.ffi.from_buffer(values), values.nbytes)

    def _floats(self, pointer: Any, shape: tuple[int, int]) -> np.ndarray:
        raw = self.ffi.buffer(pointer, 4 * shape[0] * shape[1])
        return np.frombuffer(raw, np.float32).reshape(shape).copy()

    def logits(self, job: Job) -> Answer:
        """Return the logits of every position, and the `greedy` likeliest tokens that follow."""
        parts = [Fed.of(self.arrays[name]) for name in job["parts"]]
        with self.context(parts, job.get("greedy", 0)) as context, self.watch.during(job):
            found, tokens = self._run(context, parts, job.get("greedy", 0))
        return {"tokens": tokens}, {"logits": found}

    def _run(self, context: Any, parts: list[Fed], greedy: int) -> tuple[np.ndarray, list[int]]:
        found, n_past = list[np.ndarray](), 0
        for part in parts:
            self.watch.recorder.decoder()
            found.append(self.feed(context, part, n_past))
            n_past += part.advance
        self.watch.recorder.stop()
        tokens, last = list[int](), found[-1][-1]
        for i in range(greedy):
            tokens.append(int(np.argmax(last)))
            last = self.feed(context, Fed.of(np.array(tokens[-1:])), n_past + i)[0] if i + 1 < greedy else last
        return np.concatenate(found), tokens

    def tokenize(self, job: Job) -> Answer:
        text = job["string"].encode()
        ids = self.ffi.new("llama_token[]", len(text) + 8)
        count = self.lib.llama_tokenize(self.vocab, text, len(text), ids, len(text) + 8, job["bos"], job["special"])
        if count < 0:
            raise self._failed(f"llama_tokenize returned {count}")
        return {"tokens": self.ffi.unpack(ids, count)}, {}

    def encode(self, job: Job) -> Answer:
        """Return the image rows of one picture, and the decoded picture."""
        bitmap, rgb = self._bitmap(job)
        with self.watch.during(job):
            chunks = filter(self._is_image, self._chunks("<__media__>", [bitmap], bos=False))  # others are markers
            rows = np.concatenate([self._encode(chunk).values for chunk in chunks])  # one chunk for each tile
        self.lib.mtmd_bitmap_free(bitmap)
        return {}, {"rows": rows, "rgb": rgb}

    def grids(self, job: Job) -> Answer:
        """Return rows and columns of what stands for pictures of these widths and heights; nothing is run."""
        found = []
        for width, height in job["sizes"]:
            bitmap = self.lib.mtmd_bitmap_init(width, height, self.ffi.new("unsigned char[]", width * height * 3))
            for chunk in filter(self._is_image, self._chunks("<__media__>", [bitmap], bos=False)):
                image = self.lib.mtmd_input_chunk_get_tokens_image(chunk)
                nx, ny = (get(image) for get in (self.lib.mtmd_image_tokens_get_nx, self.lib.mtmd_image_tokens_get_ny))
                found.append((ny, nx))
            self.lib.mtmd_bitmap_free(bitmap)
        return {"grids": found}, {}

    def prompt(self, job: Job) -> Answer:
        """Run a prompt end to end: text with media markers and pictures -> chunks, logits, greedy tokens."""
        with self.watch.during(job):
            parts = self._prompt_parts(job)
            with self.context(parts, job["greedy"]) as context:
                found, tokens = self._run(context, parts, job["greedy"])
        values = [part.values for part in parts]
        chunks = [{"image": len(part)} if part.ndim == 2 else {"tokens": part.tolist()} for part in values]
        return {"tokens": tokens, "chunks": chunks}, {"logits": found}

    def _prompt_parts(self, job: Job) -> list[Fed]:
        """Return token ids (T,) and image rows (N, D), in order."""
        if self.vision is None:
            (fact, _) = self.tokenize({**job, "special": True})
            parts = [Fed.of(np.array(fact["tokens"], np.int32))]
        else:
            pictures = [self._bitmap(image) for image in job["images"]]
            for i, (_, rgb) in enumerate(pictures):
                self.watch.recorder.add(f"image.rgb#{i}" if i else "image.rgb", rgb)
            chunks = self._chunks(job["string"], [bitmap for bitmap, _ in pictures], bos=job["bos"])
            parts = [self._part(chunk) for chunk in chunks]
        bos = self.lib.llama_vocab_bos(self.vocab)
        if job["single_bos"] and parts and parts[0].values.tolist()[:2] == [bos, bos]:
            parts[0] = Fed.of(parts[0].values[1:])
        if not any(len(part.values) for part in parts):
            raise RuntimeError("the prompt has no tokens")
        return parts

    def _bitmap(self, image: dict[str, Any]) -> tuple[Any, np.ndarray]:
        if "rgb" in image:
            rgb = np.ascontiguousarray(self.arrays[image["rgb"]], np.uint8)
            bitmap = self.lib.mtmd_bitmap_init(rgb.shape[1], rgb.shape[0], self.ffi.from_buffer(rgb))
            return bitmap, rgb
        options = self.lib.mtmd_helper_init_opt_default()
        path = image["file"].encode()
        bitmap = self.lib.mtmd_helper_bitmap_init_from_file(self.vision, path, False, options).bitmap
        if not bitmap:
            raise self._failed(f"cannot decode {Path(image['file']).name}")
        shape = (self.lib.mtmd_bitmap_get_ny(bitmap), self.lib.mtmd_bitmap_get_nx(bitmap), 3)
        raw = self.ffi.buffer(self.lib.mtmd_bitmap_get_data(bitmap), int(np.prod(shape)))
        return bitmap, np.frombuffer(raw, np.uint8).reshape(shape).copy()

    def _chunks(self, string: str, bitmaps: list[Any], *, bos: bool) -> list[Any]:
        encoded = string.encode()
        text = self.ffi.new("char[]", encoded)
        wanted = self.ffi.new("mtmd_input_text *", {"text": text, "text_len": len(encoded)})
        wanted.add_special, wanted.parse_special = bos, True
        chunks = self.lib.mtmd_input_chunks_init()
        images = self.ffi.new("mtmd_bitmap *[]", bitmaps)
        status = self.lib.mtmd_tokenize(self.vision, chunks, wanted, images, len(bitmaps))
        if status:
            raise self._failed(f"mtmd_tokenize returned {status}")
        return [self.lib.mtmd_input_chunks_get(chunks, i) for i in range(self.lib.mtmd_input_chunks_size(chunks))]

    def _is_image(self, chunk: Any) -> bool:
        return bool(self.lib.mtmd_input_chunk_get_type(chunk) == self.lib.MTMD_INPUT_CHUNK_TYPE_IMAGE)

    def _part(self, chunk: Any) -> Fed:
        if self._is_image(chunk):
            return self._encode(chunk)
        count = self.ffi.new("size_t *")
        ids = self.lib.mtmd_input_chunk_get_tokens_text(chunk, count)
        return Fed.of(np.array(self.ffi.unpack(ids, count[0]), np.int32))

    def _encode(self, chunk: Any) -> Fed:
        self.watch.recorder.picture()
        status = self.lib.mtmd_encode_chunk(self.vision, chunk)
        if status:
            raise self._failed(f"mtmd_encode_chunk returned {status}")
        count = self.lib.mtmd_input_chunk_get_n_tokens(chunk)
        rows = self._floats(self.lib.mtmd_get_output_embd(self.vision), (count, self.width))
        if not self.grid_positions:
            return Fed.of(rows)
        image = self.lib.mtmd_input_chunk_get_tokens_image(chunk)
        found = self.ffi.new("struct mtmd_decoder_pos[]", count)
        self.lib.mtmd_helper_image_get_decoder_pos(image, 0, found)
        positions = np.array([[at.t, at.y, at.x, at.z] for at in found]).T
        return Fed(rows, self.lib.mtmd_input_chunk_get_n_pos(chunk), positions)


def _say(what: str) -> None:
    """Write a line that is the last one if llama.cpp crashes next."""
    print(what, file=sys.stderr, flush=True)


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    with np.load(folder / "request.npz") as arrays:
        worker = LlamaWorker(request, dict(arrays))
    kinds: dict[str, Callable[[Job], Answer]]
    kinds = {"logits": worker.logits, "tokenize": worker.tokenize, "encode": worker.encode, "prompt": worker.prompt}
    kinds |= {"grids": worker.grids}
    facts, arrays = [], {}
    for i, job in enumerate(request["jobs"]):
        _say(f"running {job['kind']}")
        fact, found = kinds[job["kind"]](job)
        facts.append({**fact, "seen": worker.watch.seen})
        arrays |= {f"{i} {name}": array for name, array in (found | worker.watch.arrays).items()}
        worker.watch.seen, worker.watch.arrays = [], {}
    np.savez(folder / "result.npz", **arrays)
    result = {"version": worker.llama.version, "log": worker.llama.log, "jobs": facts}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except RuntimeError as error:
        sys.exit(f"{error}")
