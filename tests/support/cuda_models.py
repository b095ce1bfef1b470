"""Load pairs over the kernels of a CUDA device; where there is none, they run in Triton's interpreter."""

from llava_ref import Llava, gguf
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.models import text_family, tower_family
from llava_ref.ops.cuda.ops import CudaOps
from llava_ref.profiles import resolve

from .triton_device import DEVICE

EVERYTHING = 1 << 40  # bytes of float16 copies


def fast(pair: Pair, profile: str = "llava", copies: int = EVERYTHING, dependent_launch: bool = False) -> Llava:
    """Load a pair in precision `fast`, with at most `copies` bytes of weights in float16."""
    ops, quirks = CudaOps(DEVICE, None, copies, dependent_launch), resolve(profile, None)
    text, mmproj = gguf.read(pair.text), gguf.read(pair.mmproj)
    settings = {"profile": profile, "precision": "fast", "backend": "torch", "device": "cuda"}
    decoder, tower = text_family(text).load(text, ops, quirks), tower_family(mmproj).load(mmproj, ops, quirks)
    return Llava(decoder, tower, quirks, settings, None, None)
