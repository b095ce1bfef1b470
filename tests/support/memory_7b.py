"""How much memory a 7B-shaped Q4_K file takes in precision `exact`. Not a test: it writes 4 GB and takes minutes.

    python -m tests.support.memory_7b FOLDER [--backend torch|numpy]

Builds FOLDER/7b-shaped.q4_k.gguf (Llama 2 7B's shapes, random blocks) unless it is there, runs eight tokens and prints
the process's peak resident size, which counts the mapped file's pages too.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

D, F, LAYERS, HEADS, V = 4096, 11008, 32, 32, 32000
BLOCK = 144  # bytes of a Q4_K block of 256 weights


def blocks(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random Q4_K blocks with weights of about 0.02, (rows, bytes) uint8; one random stretch repeated."""
    tile = rng.integers(0, 256, (4096, BLOCK), np.uint8)
    tile[:, :4] = np.array([1e-4, 8e-4], np.float16).view(np.uint8)  # d, dmin
    return np.resize(tile, (rows, columns // 256 * BLOCK))


def build(path: Path) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    special, single = ["<unk>", "<s>", "</s>"], [f"<0x{i:02X}>" for i in range(256)]
    writer.add_token_list(special + single + [f"w{i}" for i in range(V - 259)])
    writer.add_token_scores([0.0] * V)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (V - 259))
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (V, D), "output": (V, D)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{name}": (D, D) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.ffn_gate": (F, D), f"blk.{i}.ffn_up": (F, D), f"blk.{i}.ffn_down": (D, F)}
    for name, shape in shapes.items():
        size = shape[0] * shape[1] // 256 * BLOCK
        writer.add_tensor_info(f"{name}.weight", (shape[0], shape[1] // 256 * BLOCK), np.dtype(np.uint8), size,
                               GGMLQuantizationType.Q4_K)  # fmt: skip
    norms = ["output_norm", *(f"blk.{i}.{name}" for i in range(LAYERS) for name in ("attn_norm", "ffn_norm"))]
    for name in norms:
        writer.add_tensor_info(f"{name}.weight", (D,), np.dtype(np.float32), 4 * D)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape in shapes.values():
        writer.write_tensor_data(blocks(rng, *shape))
    for _ in norms:
        writer.write_tensor_data(np.ones(D, np.float32))
    writer.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--backend", default="torch")
    args = options.parse_args()
    path = args.folder / "7b-shaped.q4_k.gguf"
    if not path.exists():
        build(path)
    import llava_ref

    start = time.perf_counter()
    session = llava_ref.load(path, backend=args.backend, n_context=512).session()
    loaded = time.perf_counter()
    session.feed([list(range(300, 308))])
    prefilled = time.perf_counter()
    session.feed([[400]])
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"load {loaded - start:.1f} s, 8 tokens {prefilled - loaded:.1f} s, 1 token {done - prefilled:.1f} s")
    print(f"peak resident size {peak:.2f} GiB")


if __name__ == "__main__":
    main()
