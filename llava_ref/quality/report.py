"""Hold everything measured in one report, and convert it to JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..gguf.file import GGUFFile
from .behaviour import Difference, spread
from .cases import QualityCase
from .comparison import Behaviour
from .ranking import RaisedTensors, Ranked
from .siblings import FilePair
from .tensors import TensorError


@dataclass(frozen=True, slots=True)
class FileSize:
    """Holds the bytes of the tensors of a file and of its reference."""

    path: str
    reference: str
    n_weights: int
    n_bytes: int
    reference_bytes: int


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Holds the cost of quantisation of a pair. `tensors` has every stored tensor, `ranking` those that differ."""

    files: dict[str, FileSize]  # "model", "mmproj"
    precision: str
    tensors: tuple[TensorError, ...]
    behaviour: Behaviour
    cases: tuple[QualityCase, ...]
    ranking: tuple[Ranked, ...]
    raised: tuple[RaisedTensors, ...]

    @property
    def cosines(self) -> np.ndarray:
        """Return the cosine of every image row of every picture."""
        return np.concatenate([np.zeros(0), *(d.cosines for d in self.behaviour.differences)])

    def share(self, raised: RaisedTensors) -> float:
        """Return the share of the pair's typical KL that raising these removes; negative if it grew."""
        kl = self.behaviour.kl
        return 1 - raised.kl.typical / kl.typical if kl is not None and kl.typical else 0.0


def sizes(quantised: FilePair, reference: FilePair) -> dict[str, FileSize]:
    """Return the sizes of each file that the pairs have, by "model" and "mmproj"."""
    files = {"model": (quantised.text, reference.text), "mmproj": (quantised.mmproj, reference.mmproj)}
    return {kind: _size(a, b) for kind, (a, b) in files.items() if a is not None and b is not None}


def _size(file: GGUFFile, reference: GGUFFile) -> FileSize:
    n_weights = sum(math.prod(view.shape) for view in file.tensors.values())
    n_bytes = (sum(len(view.data) for view in f.tensors.values()) for f in (file, reference))
    return FileSize(str(file.path), str(reference.path), n_weights, *n_bytes)


def as_json(r: QualityReport) -> dict[str, Any]:
    """Convert a report to plain data. Errors are relRMS, KL is in nats; infinity becomes null."""
    b = r.behaviour
    return {
        "files": {kind: asdict(size) for kind, size in r.files.items()},
        "tensors": [
            {**_finite(asdict(t)), "bits": t.bits, "product_rel_rms": b.products.get(t.name)} for t in r.tensors
        ],
        "layers": [{"name": name, "added": added, "carried": b.carried[name]} for name, added in b.added.items()],
        "images": _images(r.cosines, b.differences),
        "kl": _spreads(b.differences),
        "cases": [_case(case, d) for case, d in zip(r.cases, b.differences, strict=True)],
        "ranking": [{**_finite(asdict(entry)), "kl_per_mib": _number(entry.per_mib)} for entry in r.ranking],
        "raised": [{**asdict(step), "kl_removed": r.share(step)} for step in r.raised],
    }


def _images(cosines: np.ndarray, differences: Sequence[Difference]) -> dict[str, float] | None:
    if not len(cosines):
        return None
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_worst": float(cosines.min()),
        "rel_rms_mean": float(np.mean([d.rows_rel_rms for d in differences])),
        "rel_rms_worst": max(d.rows_rel_rms for d in differences),
    }


def _spreads(differences: Sequence[Difference]) -> dict[str, Any]:
    parts = {"all": None, "answers": True, "questions": False}
    spreads = {name: spread(differences, part) for name, part in parts.items()}
    return {name: None if s is None else asdict(s) for name, s in spreads.items()}


def _case(case: QualityCase, d: Difference) -> dict[str, Any]:
    return {
        "label": case.label,
        "question": case.question,
        "answer": case.answer,
        "same_answer": same_answer(d),
        "images": _images(d.cosines, [d]),
        "kl": _spreads([d]),
        "positions": {
            "tokens": list(case.texts),
            "in_answer": d.in_answer.tolist(),
            "kl": d.kl.tolist(),
            "same_top": d.same_top.tolist(),
        },
    }


def same_answer(d: Difference) -> bool:
    """Tell whether the quantised pair gives the reference's greedy answer: each likeliest token is the same."""
    return bool(d.same_top[d.in_answer].all())


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _number(x) if isinstance(x, float) else x for key, x in value.items()}


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
