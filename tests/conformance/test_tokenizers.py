"""Token ids against llama.cpp's, for every pre-tokenizer it lists, on a vocabulary that shows where text was cut."""

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ref import gguf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs.writing import write
from llava_ref.tokenizer.bpe import byte_letters
from llava_ref.tokenizer.pretokenizers import PRES
from llava_ref.tokenizer.tokenizer import Tokenizer

pytestmark = [pytest.mark.oracle, pytest.mark.skipif(oracle.missing() is not None, reason=str(oracle.missing()))]

# Reads [[file, special], ...] and texts, loads each vocabulary alone and prints the ids of every text.
WORKER = """
import json, sys
from llava_ref.conformance.engines.llama_cpp.library import LlamaLibrary
llama = LlamaLibrary()
files, texts = json.load(sys.stdin)
params = llama.lib.llama_model_default_params()
params.vocab_only = True
answers = []
for file in files:
    model = llama.lib.llama_model_load_from_file(file.encode(), params)
    assert model != llama.ffi.NULL, (file, llama.log[-2:])
    vocab, answer = llama.lib.llama_model_get_vocab(model), []
    for text in map(str.encode, texts):
        ids = llama.ffi.new("llama_token[]", len(text) + 8)
        answer.append(list(ids[0 : llama.lib.llama_tokenize(vocab, text, len(text), ids, len(text) + 8, False, True)]))
    answers.append(answer)
    llama.lib.llama_model_free(model)
json.dump(answers, sys.stdout)
"""
CHARACTERS = list(
    "abesADHLTt'''019 \n\r\t.,!?_-/<>|$=^`@(\"\\"
    "éÉßµЖא١٣½²日語かカ한ㄱΩǅʰﬁ。，！“…　\u00a0\u2028\u0085\u200d\u0301\u0308▁𐐀🦙"
)
WORDS = "'s 'RE 'Ll don't I'VE 123 1234567 helloWorld HTTPServer 日本語1abc नमस्ते IMGIMGABZ <sentinel:12>".split()
WORDS += ["12٣456", "1234٣"]
WORDS += ["  ", "   \n", "\r\n\r\n", "\n\n", " \n \n", "a b c", " 1", "  12", "\t\t", "<|x|>", " <|x|> ", "</s>"]
PLAIN = [name for name, pre in PRES.items() if not pre.byte_level]


def texts(n: int) -> list[str]:
    rng = random.Random(1)
    pick = [CHARACTERS] * 3 + [WORDS]
    random_texts = ["".join(rng.choice(rng.choice(pick)) for _ in range(rng.randrange(1, 30))) for _ in range(n)]
    return random_texts + ["".join(rng.choices(WORDS, k=3)) for _ in range(n)]


def byte_vocabulary(pre: str) -> dict[str, object]:
    """Make a vocabulary in which 3,000 pairs of the test texts' byte letters merge: another cut gives other ids."""
    letters = byte_letters()
    used = sorted({letters[b] for c in CHARACTERS + WORDS for b in c.encode()})
    pairs = random.Random(2).sample(list(itertools.product(used, repeat=2)), 3000)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*letters, *map("".join, pairs), "<|x|>", "</s>"],
        "tokenizer.ggml.token_type": [1] * (256 + len(pairs)) + [3, 3],
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs],
    }


def plain_vocabulary(pre: str) -> dict[str, object]:
    """Make the same for plain characters; llama.cpp has no merges with newlines or spaces in them."""
    letters = sorted({c for word in CHARACTERS for c in word} - set(" \n")) + [" ", "\n"]
    pairs = list(itertools.product(letters[:-2], repeat=2))
    random.Random(3).shuffle(pairs)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [
            *letters,
            *map("".join, pairs),
            *(f"<0x{b:02X}>" for b in range(256)),
            "\n\n",
            "<|x|>",
        ],
        "tokenizer.ggml.token_type": [1] * (len(letters) + len(pairs)) + [6] * 256 + [1, 3],
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs],
    }


def compare(files: list[Path], strings: list[str]) -> None:
    request = json.dumps([[str(file) for file in files], strings])
    done = subprocess.run([sys.executable, "-c", WORKER], input=request, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    for file, theirs in zip(files, json.loads(done.stdout), strict=True):
        tokenizer = Tokenizer.from_gguf(gguf.read(file))
        ours = [tokenizer.encode(text, prefix_after_special=True) for text in strings]
        wrong = [text for text, a, b in zip(strings, ours, theirs, strict=True) if a != b]
        assert not wrong, f"{file.name}: {len(wrong)} of {len(strings)} texts, first {wrong[0]!r}"


def written(folder: Path, name: str, keys: dict[str, object]) -> Path:
    path = folder / f"{name}.gguf"
    write(path, {"general.architecture": "llama", **keys}, {})  # type: ignore[dict-item]
    return path


def test_every_byte_level_pre_tokenizer(tmp_path):
    names = [name for name in PRES if name not in PLAIN]
    assert len(names) == 83
    compare([written(tmp_path, name, byte_vocabulary(name)) for name in names], texts(150))


def test_every_plain_pre_tokenizer(tmp_path):
    """`whitespace` is left out, because llama.cpp stops at a run of more than one blank."""
    names = [name for name in PLAIN if name != "whitespace"]
    compare([written(tmp_path, name, plain_vocabulary(name)) for name in names], texts(150))


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "llama-bpe", "qwen2"])
def test_real_vocabularies(name):
    file = Path(__file__).parents[3] / "shared" / "data" / "vocab" / f"ggml-vocab-{name}.gguf"
    if not file.exists():
        pytest.skip("the shared vocabularies are not beside the repository")
    compare([file], [*texts(300), "<s> a</s>b<|end|> \n<|user|>", "<|im_start|>user<|im_end|>"])
