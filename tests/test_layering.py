"""Imports point one way, and the light paths stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llava_ref"
ORDER = [  # a module may import from earlier rows only
    ["threads"],
    ["errors", "blocks", "measure", "memory", "sandboxed"],
    ["gguf_bytes", "image_parts"],
    ["gguf_metadata", "image_jpeg"],
    ["gguf", "image_checks"],
    ["quants", "ops", "keys", "rope"],
    ["trace", "config", "profiles", "quote", "pretokenizers"],
    ["stages", "attention", "cache", "weights", "units", "images", "resample"],
    ["vocabulary", "scenes", "scores", "schemas"],
    ["tokenizer_spm"],
    ["tokenizer_bpe"],
    ["preprocess", "tokenizer", "vision", "projector", "decoder", "messages", "sandbox", "losses"],
    ["templates", "backends"],
    ["chat", "engine", "tracefile"],
    ["prompt", "sampler", "grammar"],
    ["generate", "reuse"],
    ["pieces"],
    ["model"],
    ["loading"],
    ["quality", "study"],
    ["api"],
    ["tools"],
    ["cli"],
]
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
FORWARD = {"vision", "projector", "decoder", "cache"}


def imports(path: Path) -> set[str]:
    """First-level module names of llava_ref that the file imports, at any depth of nesting."""
    found: set[str] = set()
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    below = {other for other in imports(path) & RANK.keys() - {name} if RANK[other] >= RANK[name]}
    assert name in RANK, f"{name} has no row in ORDER"
    assert not below, f"{name} imports {below}, which stand in its own row or below"


@pytest.mark.parametrize("name", sorted(FORWARD))
def test_a_forward_pass_knows_no_backend(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "torch" not in names
    assert "backends" not in imports(PACKAGE / f"{name}.py")


HEAVY = "torch triton numba transformers starlette llava_ref.conformance llava_ref.kernels".split()


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import llava_ref", HEAVY),
        ("import llava_ref.cli", HEAVY),
        ("from llava_ref.backends import get_ops; get_ops('numpy', 'cpu', None, 0)", HEAVY),
    ],
)
def test_light_imports_stay_light(code, absent):
    code += f"; import sys; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
