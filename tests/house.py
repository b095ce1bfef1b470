"""Print figures of the house: lengths of functions and files, imports that run back up, names with two meanings.

`python -m tests.house` prints them; `test_house.py` holds them where they are.
"""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

from .test_layering import MODULES, PACKAGE, RANK, circle, imports

ROOT = Path(__file__).parents[1]
FOLDERS = ("llava_ref", "kernels", "conformance", "training")


def sources() -> list[Path]:
    """Return every Python file of the program, tests left out."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def definitions(path: Path) -> Iterator[ast.AST]:
    yield from ast.walk(ast.parse(path.read_text("utf-8")))


def function_lengths() -> dict[str, int]:
    """Return the lines of every function, decorators left out, by file and name."""
    found = {}
    for path in sources():
        for node in definitions(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                found[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    return found


def file_lengths() -> dict[str, int]:
    return {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in sources()}


def classes_defined_twice() -> dict[str, list[str]]:
    """Return the class names with more than one definition, and where these are."""
    found = defaultdict(list)
    for path in sources():
        for node in definitions(path):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def upward_imports() -> list[str]:
    """Return the imports of a folder that stands in the same row as its own or below, and one circle of modules."""
    found, graph = [], {}
    for path in MODULES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        others = imports(path)
        graph[".".join(parts).removesuffix(".__init__")] = others
        folders = {other.split(".")[0] for other in others} & RANK.keys() - {parts[0]}
        found += [f"{'.'.join(parts)} -> {other}" for other in sorted(folders) if RANK[other] >= RANK[parts[0]]]
    return [*found, *circle(graph)]


def main() -> None:
    functions, files = function_lengths(), file_lengths()
    lengths = list(functions.values())
    p90 = quantiles(lengths, n=10)[-1]
    print(f"functions: {len(lengths)}; lines: median {median(lengths):g}, p90 {p90:g}, max {max(lengths)}")
    for name, lines in Counter(functions).most_common(3):
        print(f"  {lines:4} {name}")
    total, middle, most = sum(files.values()), median(files.values()), max(files.values())
    print(f"files: {len(files)}; lines: {total}, median {middle:g}, max {most}")
    print(f"files over 300 lines: {[name for name, lines in files.items() if lines > 300] or 'none'}")
    print(f"imports that run back up: {upward_imports() or 'none'}")
    print(f"class names with two meanings: {classes_defined_twice() or 'none'}")


if __name__ == "__main__":
    main()
