"""Imports point one way, and the light paths stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llava_ref"
ORDER = [  # folders, and the modules beside them; one may import from earlier rows only
    ["errors", "extras", "json_text", "memory", "quirk", "scale", "versions"],
    ["files", "vision_quirks"],
    ["gguf", "profiles"],
    ["html"],
    ["ops", "scenes"],
    ["tracing", "images", "tokenizer"],
    ["models"],
    ["chat"],
    ["generation"],
    ["network"],
    ["model"],
    ["loading"],
    ["benchmark", "quality", "records", "study"],
    ["api"],
    ["batch"],
    ["tools"],
    ["cli"],
]
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or not p.name.startswith("__"))


def imports(path: Path) -> set[str]:
    """Return every module of llava_ref that the file imports, as a path of names: `ops.protocol`."""
    found: set[str] = set()
    folder = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) + 1 - node.level], *(node.module or "").split(".")]
            names = [] if node.module else [alias.name for alias in node.names]
            found |= {".".join(filter(None, [*base, name])) for name in names or [""]}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return one way round through the graph, or nothing where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        found = next(filter(None, (walk(other, [*way, name]) for other in sorted(graph.get(name, ())))), [])
        done.add(name)
        return found

    return next(filter(None, (walk(name, []) for name in sorted(graph))), [])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    folders = {other.split(".")[0] for other in imports(path)}
    below = {other for other in folders & RANK.keys() - {name} if RANK[other] >= RANK[name]}
    assert name in RANK, f"{name} has no row in ORDER"
    assert not below, f"{name} imports {below}, which stand in its own row or below"


def test_no_module_imports_itself_by_a_way_round():
    named = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports(path) for path in MODULES}
    assert not circle({name.removesuffix(".__init__"): found for name, found in named.items()})
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda p: p.name)
def test_a_network_knows_no_backend(path):
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "torch" not in names
    of_ops = {name for name in imports(path) if name.startswith("ops")}
    assert of_ops <= {"ops.protocol", "ops.sees", "ops.step", "ops.numpy_quants"}


HEAVY = "torch triton llvmlite transformers starlette llava_ref.conformance llava_ref.kernels".split()


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import llava_ref", HEAVY),
        ("import llava_ref.cli", HEAVY),
        ("from llava_ref.ops import get_ops; get_ops('numpy', 'cpu', None, 0)", HEAVY),
    ],
)
def test_light_imports_stay_light(code, absent):
    code += f"; import sys; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
