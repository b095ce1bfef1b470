"""A GGUF file again, with a few things changed: through the `gguf` package, reader and writer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Keys = dict[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]
"""Name -> value, type, and type of the elements of an array."""
Tensors = dict[str, np.ndarray]


def changed(source: Path, target: Path, change: Callable[[Keys, Tensors], None]) -> Path:
    """Write `target`, which is `source` with its keys and tensors (none of them of blocks) as `change` leaves them."""
    reader = gguf.GGUFReader(source)
    keys: Keys = {
        f.name: (f.contents(), f.types[0], f.types[-1] if f.types[0] == gguf.GGUFValueType.ARRAY else None)
        for f in reader.fields.values()
        if not f.name.startswith("GGUF.") and f.name != "general.architecture"
    }
    tensors = {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in reader.tensors}
    change(keys, tensors)
    writer = gguf.GGUFWriter(target, "clip" if "clip.has_vision_encoder" in keys else "llama")
    for name, (value, kind, element) in keys.items():
        writer.add_key_value(name, value, kind, sub_type=element)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
