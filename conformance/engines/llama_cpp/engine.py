"""Run llama.cpp as a reference: its own preprocessing, tower, tokenizer and decoder, in a process of its own."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from zipfile import BadZipFile

from llava_ref.errors import LlavaError

from ..reference import Case, ReferenceError, Run
from ..stages import check_pictures, ordered
from .oracle import DEFAULTS, EXACT, Oracle, PromptResult, Settings
from .stages import UNNAMED

MARKER = "<__media__>"  # mtmd.cpp:443


class LlamaCpp:
    """Run llama.cpp with these settings. `stages`: patterns of the stages to keep; attention weights only if a pattern
    names `kq_soft_max`, and never with flash attention, which computes none."""

    def __init__(
        self, settings: Settings = EXACT, *, stages: Sequence[str] = ("*",), timeout: float = 600.0
    ) -> None:  # fmt: skip
        self.settings, self.stages, self.timeout = settings, tuple(stages), timeout
        named = {EXACT: "EXACT", DEFAULTS: "DEFAULTS"}
        self.name = f"llama.cpp {_build()} {named.get(settings) or _differences(settings)}"

    def run(self, case: Case, *, n_greedy: int = 0) -> Run:
        """Run a case. Token ids are llama.cpp's own; a prompt that begins with BOS gets no other, as in its chat code.
        Raises ReferenceError for anything but an answer."""
        check_pictures(case)
        oracle = Oracle(case.text, case.mmproj, self.settings, timeout=self.timeout)
        try:
            found = oracle.prompt(
                case.rendered("given").replace("<image>", MARKER),
                case.images,
                greedy=n_greedy,
                stages=self.stages,
                single_bos=True,
            )
        except LlavaError as error:
            raise ReferenceError(self.name, error.field, error.problem) from None
        except (OSError, ValueError, KeyError, BadZipFile) as error:  # of the folder between
            raise ReferenceError(self.name, "answer", str(error)) from None
        return Run(self.name, self._about(oracle), ordered(found.stages), _ids(found), found.tokens)

    def _about(self, oracle: Oracle) -> dict[str, str]:
        rounded = self.settings.flash_attention != 0 or self.settings.cache_type != 0
        return {
            "arithmetic": "ggml",
            "attention": "float16" if rounded else "float32",
            **oracle.version,
            "settings": json.dumps(asdict(self.settings)),
            "warnings": "; ".join(oracle.log),
            "found by operation, not by name": ", ".join(UNNAMED),
        }


def _ids(found: PromptResult) -> tuple[int, ...]:
    parts = [chunk if isinstance(chunk, tuple) else (-1,) * chunk for chunk in found.chunks]
    return tuple(token for part in parts for token in part)


def _build() -> str:
    """Return llama.cpp's build number, the end of the package's version; the library calls its commit "unknown"."""
    try:
        return f"b{version('xllamacpp').rpartition('.')[2]}"
    except PackageNotFoundError:
        return "not installed"


def _differences(settings: Settings) -> str:
    """Describe the settings by their differences from EXACT."""
    exact = asdict(EXACT)
    changed = [f"{name}={value}" for name, value in asdict(settings).items() if value != exact[name]]
    return f"EXACT with {', '.join(changed)}"
