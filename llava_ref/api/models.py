"""The model that is served, and how another takes its place: the old one answers until the new one is ready.

A request keeps the model it was prepared for, so a swap disturbs none; an old model's memory is given back when the
last of them has been answered.
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
from .errors import ApiError

Pair = tuple[Path, Path | None]
Load = Callable[[Path, Path | None, int | None], Llava]  # text model, mmproj, positions


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and what the server says about it. `prompts`: Nitro's, instead of the file's own template."""

    model: Llava
    pair: Pair
    created: int
    fingerprint: str
    """The same for the same files and settings: what decides an answer, beside the request."""
    grammars: JsonGrammars
    prompts: ChatTemplate | None = None
    stops: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return printable(self.pair[0].stem, 200)


class Models:
    """What is loaded now. `folders`: where `loadmodel` may take files from, besides the pairs that come with us."""

    def __init__(self, load: Load, folders: tuple[Path, ...] = ()) -> None:
        self._load, self._folders = load, tuple(folder.resolve() for folder in folders)
        self._changing = threading.Lock()
        self._known: set[Path] = {path.resolve() for path in embedded()}
        self._current: Loaded | None = None

    @property
    def current(self) -> Loaded:
        """ApiError 400 if there is none."""
        loaded = self._current
        if loaded is None:
            raise ApiError(
                400, "no model is loaded: POST /inferences/llamacpp/loadmodel first", code="model_not_loaded"
            )
        return loaded

    @property
    def any(self) -> Loaded | None:
        return self._current

    def start(self, text: Path, mmproj: Path | None, n_context: int | None = None) -> Loaded:
        """The first model: named by the operator, so taken from anywhere. LlavaError."""
        pair = (text.resolve(), None if mmproj is None else mmproj.resolve())
        self._known |= {path for path in pair if path is not None}
        self._current = _loaded(self._load(*pair, n_context), pair)
        return self._current

    def change(
        self, text: str, mmproj: str | None, n_context: int | None, prompts: ChatTemplate | None, stops: tuple[str, ...]
    ) -> Loaded:
        """Loads another pair and puts it in the place of the old one. ApiError; the old one then stays."""
        pair = (self._allowed(text, "llama_model_path"), None if not mmproj else self._allowed(mmproj, "mmproj"))
        if not self._changing.acquire(blocking=False):
            raise ApiError(503, "another model is being loaded", code="model_loading", retry_after=5)
        try:
            if self._current is not None and self._current.pair == pair:
                raise ApiError(409, "Model already loaded", code="model_already_loaded")
            self._current = _loaded(self._read(pair, n_context), pair, prompts, stops)
            return self._current
        finally:
            self._changing.release()
            collect()

    def drop(self) -> None:
        """ApiError 409 if there is none, as Nitro."""
        if self._current is None:
            problem = "Model has not been loaded, please load model into nitro"
            raise ApiError(409, problem, code="model_not_loaded")
        self._current = None
        collect()

    def _allowed(self, name: str, param: str) -> Path:
        """The file with all links resolved. ApiError 403 says the same of what is not there and what is elsewhere."""
        try:
            path = Path(name).resolve()
        except (OSError, ValueError, RuntimeError):  # a zero byte, a loop of links
            raise ApiError(400, f"{param}: not a path", param=param, code="invalid_value") from None
        if path not in self._known and not any(path.is_relative_to(folder) for folder in self._folders):
            problem = f"{param}: not in a folder that the server was started with (--allow-model-dir)"
            raise ApiError(403, problem, param=param, code="path_not_allowed")
        return path

    def _read(self, pair: Pair, n_context: int | None) -> Llava:
        try:
            try:
                return self._load(*pair, n_context)
            except ParameterError as error:
                if error.where != "n_context":
                    raise
                return self._load(*pair, None)  # more was asked for than the model has: then all it has
        except LlavaError as error:
            param = "mmproj" if pair[1] is not None and str(pair[1]) == error.where else "llama_model_path"
            raise ApiError(400, f"{param}: {error.field}: {error.problem}", param=param, code="invalid_model") from None
        except (OSError, MemoryError) as error:  # the machine's fault, not the file's
            problem = getattr(error, "strerror", None) or "not enough memory"
            raise ApiError(503, f"the model could not be loaded: {problem}", code="load_failed") from None


def _loaded(model: Llava, pair: Pair, prompts: ChatTemplate | None = None, stops: tuple[str, ...] = ()) -> Loaded:
    model.reuse = Reuse()
    files = [(path.name, path.stat().st_size) for path in pair if path is not None]
    about = json.dumps([files, model.settings, model.n_context, None if prompts is None else prompts.source])
    fingerprint = "fp_" + hashlib.sha256(about.encode()).hexdigest()[:12]
    return Loaded(model, pair, int(time.time()), fingerprint, JsonGrammars(model.tokenizer), prompts, stops)
