"""Compile every kernel ahead of time and hold its machine code to kernels/compiled.json. No device is needed.

`python -m llava_ref.kernels.compiled` writes the table, and the section of kernels/README.md that shows it; `--check`
compares and prints one line for every figure that got worse; `--table` prints the figures of every variant.
"""

import argparse
import hashlib
import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llava_ref.errors import LlavaError

from .figures import (
    TABLE,
    TARGETS,
    Figure,
    Figures,
    Table,
    compare,
    markdown,
    read_sources,
    read_table,
    section,
    write_table,
)
from .machine_code import loads, loop_loads, read
from .triton.variant import Variant

PACKAGE = "llava_ref.kernels.triton"
README = TABLE.with_name("README.md")
BEGIN = "<!-- table: written by python -m llava_ref.kernels.compiled -->\n"
END = "\n<!-- end -->\n"
SAMPLE = 16
"""`--changed` compiles every so-manyth of the variants that did not change: the compiler may have."""


def collect(package: str = PACKAGE) -> dict[str, Variant]:
    """Return the variants that a package's modules list, by "module: name". Raises LlavaError if two share a name."""
    found: dict[str, Variant] = {}
    parent = importlib.import_module(package)
    names = [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", []))]
    for module in [parent, *(importlib.import_module(f"{package}.{name}") for name in names)]:
        for variant in module.variants() if hasattr(module, "variants") else ():
            name = f"{module.__name__.rpartition('.')[2]}: {variant.name}"
            if name in found:
                raise LlavaError(module.__name__, variant.name, "the name of another variant too")
            found[name] = variant
    return found


def build(variant: Variant, target: int) -> Any:
    """Compile a variant for sm_<target>. Raises LlavaError if it names arguments that the kernel has not."""
    kernel = variant.kernel
    values = {p.name: p.default for p in kernel.params if p.has_default} | dict(variant.constants)
    values |= {"REAL": True} if "REAL" in kernel.arg_names else {}
    types = {name: variant.types.get(name, "constexpr") for name in kernel.arg_names}
    known = set(variant.types) | set(values)
    if wrong := set(kernel.arg_names) ^ known:
        raise LlavaError(variant.name, ", ".join(sorted(wrong)), "not in both the kernel and its variant")
    aligned = [at for at, kind in enumerate(types.values()) if kind.startswith("*") or kind.endswith(":16")]
    source = ASTSource(
        fn=kernel,
        signature={name: kind.removesuffix(":16") for name, kind in types.items()},
        constexprs={name: value for name, value in values.items() if types[name] == "constexpr"},
        attrs={(at,): [["tt.divisibility", 16]] for at in aligned},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "maxnreg": variant.registers}
    options["enable_fp_fusion"] = True
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def measure(variant: Variant, target: int) -> Figures:
    """Compile a variant and read its machine code. Raises LlavaError if it does not compile."""
    made = build(variant, target)
    code, ptx = read(made.asm["cubin"]), made.asm["ptx"]
    loop, once = code.main, sum(load.bits for load in loop_loads(ptx))
    trips = max(1, round(loop.loaded / once)) if once else 1
    arguments = [name for name in variant.kernel.arg_names if name in variant.types]
    widths: dict[str, int] = {}
    for load in loads(ptx):
        for name in (arguments[i] for i in sorted(load.arguments)):
            widths[name] = min(load.bits, widths.get(name, load.bits))
    per_weight = len(loop.body) / trips * 32 * variant.warps / variant.weights if variant.weights else None
    return Figures(
        warps=variant.warps,
        registers=code.registers,
        spills=code.spills,
        stack=code.stack,
        shared=code.shared + made.metadata.shared,
        loop=len(loop.body),
        trips=trips,
        barriers=-(-loop.barriers // trips),
        per_weight=None if per_weight is None else round(per_weight, 3),
        loads={name: widths[name] for name in arguments if name in widths},
        products=loop.products,
    )


_collected = cache(collect)


def _measured(package: str, name: str, target: int) -> Figures | str:
    """Do one piece of work in a process of the pool; return what is wrong as text, which every process can send."""
    try:
        return measure(_collected(package)[name], target)
    except Exception as error:  # the compiler's errors are of many types
        return f"{name}, sm_{target}: does not compile: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """Return the line that says what is wrong: the assembler's first error, or the last line of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if " error " in line), lines[-1])


def _silence() -> None:
    """Discard what the compiler prints in a process of the pool: its whole input, where it fails."""
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def compile_all(figures: Sequence[Figure], package: str = PACKAGE, processes: int = 2) -> tuple[Table, list[str]]:
    """Measure variants in several processes, with an empty cache; return the figures, and a line for each failure."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_silence) as pool:
            work = [pool.submit(_measured, package, name, target) for name, target in figures]
            done = [future.result() for future in work]
    table = {key: got for key, got in zip(figures, done, strict=True) if isinstance(got, Figures)}
    return table, [got for got in done if isinstance(got, str)]


def source(variant: Variant) -> str:
    """Return a hash of all that a variant's machine code depends on but the compiler.

    Triton's `cache_key` covers the text of the kernel and of every function that it calls."""
    fixed = (dict(variant.types), dict(variant.constants), variant.warps, variant.stages, variant.registers)
    return hashlib.sha256(f"{variant.kernel.cache_key} {fixed}".encode()).hexdigest()[:12]


def changed(variants: Mapping[str, Variant], sources: Mapping[str, str]) -> list[str]:
    """List the variants whose source is not the recorded one, and a fixed sample of the others."""
    same = [name for name, variant in variants.items() if source(variant) == sources.get(name)]
    left_out = set(same) - set(same[::SAMPLE])
    return [name for name in variants if name not in left_out]


def select(variants: Mapping[str, Variant], names: Collection[str] | None = None) -> list[Figure]:
    """List what to compile: each variant, or each of `names`, for every target that it runs on."""
    chosen = variants if names is None else names
    return [(name, target) for target in TARGETS for name in chosen if runs_on(variants[name], target)]


def runs_on(variant: Variant, target: int) -> bool:
    """Tell whether a target has what a variant needs: launches that overlap (PDL) came with sm_90."""
    return target >= 90 or not variant.constants.get("PDL")


def check(args: argparse.Namespace) -> int:
    """Compare with the table; return 1 where anything is worse, missing or new."""
    made_by, old = read_table(args.file)
    variants = {name: variant for name, variant in collect(args.package).items() if args.only in name}
    chosen = changed(variants, read_sources(args.file)) if args.changed else None
    new, bad = compile_all(select(variants, chosen), args.package, args.processes)
    worse_lines, notes = compare(old, new)
    gone = sorted({name for name, _ in old if args.only in name} - set(variants))
    bad += [*worse_lines, *(f"{name}: in the table, not among the kernels" for name in gone)]
    if made_by != triton.__version__:
        notes.append(f"the table was made by Triton {made_by}, this is {triton.__version__}")
    for line in [*bad, *(f"note: {note}" for note in notes)]:
        print(line)
    print(f"{len(new)} compiled, {len(bad)} worse")
    return 1 if bad else 0


def write(args: argparse.Namespace) -> int:
    """Write the figures of the variants that were asked for into the table; return 1 where one does not compile."""
    variants = collect(args.package)
    chosen = {name: variant for name, variant in variants.items() if args.only in name}
    new, failures = compile_all(select(chosen), args.package, args.processes)
    spilt, _ = compare(new, new)
    print("\n".join([*failures, *spilt, f"{len(new)} compiled"]))
    if failures:
        return 1
    kept = args.only and args.file.exists()
    old, sources = (read_table(args.file)[1], read_sources(args.file)) if kept else ({}, {})
    table = {key: figures for key, figures in old.items() if key[0] in variants} | dict(new)
    sources = {name: text for name, text in sources.items() if name in variants}
    sources |= {name: source(variant) for name, variant in chosen.items()}
    write_table(triton.__version__, sources, table, args.file)
    if args.file == TABLE:
        before, _, rest = README.read_text("utf-8").partition(BEGIN)
        README.write_text(before + BEGIN + section(table) + END + rest.partition(END)[2], "utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="llava_ref.kernels.compiled", description=__doc__.partition("\n")[0])
    p.add_argument("--check", action="store_true", help="compare with the table, write nothing")
    p.add_argument("--table", action="store_true", help="print the table as Markdown, compile nothing")
    p.add_argument("--only", default="", metavar="TEXT", help="variants whose name contains TEXT")
    p.add_argument("--changed", action="store_true", help=f"with --check: changed variants, a {SAMPLE}th of the others")
    p.add_argument("--file", type=Path, default=TABLE, help="another table")
    p.add_argument("--package", default=PACKAGE, help="another package of kernels")
    p.add_argument("--processes", type=int, default=2)
    args = p.parse_args(argv)
    try:
        if args.table:
            print(markdown({key: row for key, row in read_table(args.file)[1].items() if args.only in key[0]}))
            return 0
        if triton.knobs.runtime.interpret:
            raise LlavaError("TRITON_INTERPRET", "environment", "set, and only a process without it can compile")
        return check(args) if args.check else write(args)
    except LlavaError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
