"""Holds the served model and swaps it for another; the old one answers until the new one is ready.

A request keeps the model that it was prepared for, so a swap does not disturb running requests. The old model's memory
is freed when the last of its requests has been answered.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..chat.templates import ChatTemplate
from ..errors import LlavaError, ParameterError, printable
from ..generation.grammar import JsonGrammars
from ..generation.reuse import Reuse
from ..loading import embedded
from ..memory import collect
from ..model import Llava
from ..tracing.progress import Blocks
from .errors import ApiError
from .limits import Limits
from .recorder import AnswerRecorder

Pair = tuple[Path, Path | None]
Load = Callable[[Path, Path | None, int | None], Llava]  # text model, mmproj, positions


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and what the server reports about it. `prompts`: Nitro's prompts, which replace the file's template."""

    model: Llava
    pair: Pair
    created: int
    fingerprint: str
    """A hash of the files and settings, which together with the request determine the answer."""
    grammars: JsonGrammars
    blocks: Blocks
    recorder: AnswerRecorder
    prompts: ChatTemplate | None = None
    stops: tuple[str, ...] = ()

    @property
    def template(self) -> ChatTemplate:
        """Return the chat template in use."""
        return self.prompts or self.model.template

    @property
    def name(self) -> str:
        return printable(self.pair[0].stem, 200)


class Models:
    """Holds the current model.

    `folders`: `loadmodel` may read files from these; the embedded pair and the operator's own are allowed as well.
    `max_running`: requests that a model answers at once, at most. `records`: see `AnswerRecorder`."""

    def __init__(
        self,
        load: Load,
        folders: tuple[Path, ...] = (),
        max_running: int = Limits().max_running,
        records: Path | None = None,
    ) -> None:
        self._load, self._folders = load, tuple(folder.resolve() for folder in folders)
        self._max_running, self._records = max_running, records
        self._change_lock = threading.Lock()
        self._known_files: set[Path] = {path.resolve() for path in embedded()}
        self._current: LoadedModel | None = None

    @property
    def current(self) -> LoadedModel:
        """Return the current model. Raises ApiError 400 if none is loaded."""
        loaded = self._current
        if loaded is None:
            raise ApiError(
                400, "no model is loaded: POST /inferences/llamacpp/loadmodel first", code="model_not_loaded"
            )
        return loaded

    @property
    def current_or_none(self) -> LoadedModel | None:
        return self._current

    @property
    def together(self) -> int:
        """Return how many requests the current model can answer at once."""
        return 1 if self._current is None else self._current.model.together

    def start(self, text: Path, mmproj: Path | None, n_context: int | None = None) -> LoadedModel:
        """Load the first model. The operator named it, so it may lie in any folder. Raises LlavaError."""
        pair = (text.resolve(), None if mmproj is None else mmproj.resolve())
        self._known_files |= {path for path in pair if path is not None}
        self._current = self._loaded(self._load(*pair, n_context), pair)
        return self._current

    def change(
        self, text: str, mmproj: str | None, n_context: int | None, prompts: ChatTemplate | None, stops: tuple[str, ...]
    ) -> LoadedModel:
        """Load another pair and replace the current one. Raises ApiError; the old model then stays."""
        pair = (
            self._allowed_path(text, "llama_model_path"),
            None if not mmproj else self._allowed_path(mmproj, "mmproj"),
        )
        if not self._change_lock.acquire(blocking=False):
            raise ApiError(503, "another model is being loaded", code="model_loading", retry_after=5)
        try:
            if self._current is not None and self._current.pair == pair:
                raise ApiError(409, "Model already loaded", code="model_already_loaded")
            self._current = self._loaded(self._load_pair(pair, n_context), pair, prompts, stops)
            return self._current
        finally:
            self._change_lock.release()
            collect()

    def drop(self) -> None:
        """Unload the current model. Raises ApiError 409 if none is loaded, as Nitro does."""
        if self._current is None:
            problem = "Model has not been loaded, please load model into nitro"
            raise ApiError(409, problem, code="model_not_loaded")
        self._current = None
        collect()

    def _allowed_path(self, name: str, param: str) -> Path:
        """Return the path with all links resolved.

        Raises ApiError 403 outside the allowed folders, whether the file exists there or not."""
        try:
            path = Path(name).resolve()
        except (OSError, ValueError, RuntimeError):  # a null byte, a loop of symbolic links
            raise ApiError(400, f"{param}: not a path", param=param, code="invalid_value") from None
        if path not in self._known_files and not any(path.is_relative_to(folder) for folder in self._folders):
            problem = f"{param}: not in a folder that the server may load from (--allow-model-dir)"
            raise ApiError(403, problem, param=param, code="path_not_allowed")
        return path

    def _load_pair(self, pair: Pair, n_context: int | None) -> Llava:
        try:
            try:
                return self._load(*pair, n_context)
            except ParameterError as error:
                if error.where != "n_context":
                    raise
                return self._load(*pair, None)  # clamp to the model's context
        except LlavaError as error:
            param = "mmproj" if pair[1] is not None and str(pair[1]) == error.where else "llama_model_path"
            raise ApiError(400, f"{param}: {error.field}: {error.problem}", param=param, code="invalid_model") from None
        except (OSError, MemoryError) as error:  # the machine's fault, not that of the files
            problem = getattr(error, "strerror", None) or "not enough memory"
            raise ApiError(503, f"the model could not be loaded: {problem}", code="load_failed") from None

    def _loaded(
        self, model: Llava, pair: Pair, prompts: ChatTemplate | None = None, stops: tuple[str, ...] = ()
    ) -> LoadedModel:
        model.together = min(model.together, self._max_running)
        model.reuse = Reuse(sequences=model.together)
        halves = (model.text, model.tower) if model.has_tower else (model.text,)
        files = [(path.name, path.stat().st_size) for half in halves if half.file for path in half.file.paths]
        about = json.dumps([files, model.settings, model.n_context, None if prompts is None else prompts.source])
        fingerprint = "fp_" + hashlib.sha256(about.encode()).hexdigest()[:12]
        grammars, blocks = JsonGrammars(model.tokenizer), Blocks.of(model.stages())
        recorder = AnswerRecorder(model, prompts, self._records)
        return LoadedModel(model, pair, int(time.time()), fingerprint, grammars, blocks, recorder, prompts, stops)
