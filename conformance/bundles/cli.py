"""Golden bundles: small random pairs with what they come to at every stage, for any engine's tests.

    python -m llava_ref.conformance.bundles FOLDER             writes the set
    python -m llava_ref.conformance.bundles --check FOLDER     compares a set with what is made now
    python -m llava_ref.conformance.bundles --confirm FOLDER   runs llama.cpp and transformers over it

A bundle is a folder that needs nothing else: `text.gguf`, `mmproj.gguf`, pictures, `case.json` (the prompt, its token
ids, the profile and its quirks, the tokens that follow, SHA-256 of every file, bounds for every stage) and
`stages.safetensors`, a trace file (`llava_ref.tracing.tracefile`). `manifest.json` lists the bundles. docs/golden.md
is for the reader of a set; `golden_bundles` says what each bundle is for.

Stored and made again. The whole set is in the repository, `conformance/golden`, because whoever uses it has another
engine and not this program. All of it comes of seeds, so it can be made again and compared: files of models and
pictures byte for byte, stages within the bounds of float32, token ids exactly.

The same bytes everywhere. A weight is a random number rounded to at most 24 bits, so that a last bit of a double in
which the `log` and `exp` of two machines differ (numpy's normal deviates have some) is gone from the file; that one
shows in the whole set has a chance of about one in 100,000. Metadata are written key by key in a fixed order. Pictures
are integers, stored without compression. A stage's numbers depend on the order of sums, so on the machine: they are
never compared by bytes, and `write` starts without confirmations.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.errors import LlavaError, ParameterError
from llava_ref.tracing.distance import distance
from llava_ref.tracing.tracefile import TraceFile, Writer, hashes

from ..pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from ..pairs.pairs import Pair, TextSpec, VisionSpec, build
from .case import FORMAT, MARGINS, Expected, expected
from .pictures import picture, png
from .recipes import Bundle, bundles

MANIFEST, CASE, STAGES = "manifest.json", "case.json", "stages.safetensors"
VERSIONS = ("llava-ref", "numpy", "gguf")


def write(folder: Path, chosen: Iterable[Bundle]) -> None:
    """Writes bundles and their manifest, unconfirmed."""
    rows = {bundle.name: _write(folder / bundle.name, bundle) for bundle in chosen}
    made_by = {name: version(name) for name in VERSIONS}
    _write_manifest(folder, {"format": FORMAT, "licence": "MIT", "made_by": made_by, "bundles": rows})


def _write(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """One bundle; its row of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    files = hashes(make(folder, bundle))
    made = expected(folder, bundle, bundle.profiles[0])
    with Writer(folder / STAGES) as writer:
        for name, array in made.stages.items():
            writer.add(name, array)
        writer.finish(made.about)
    (folder / CASE).write_text(_text(made.facts | {"files": files | hashes([folder / STAGES])}), "utf-8", newline="\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    case = hashes([folder / CASE])[CASE]
    return {"about": bundle.about, "profiles": bundle.profiles, "bytes": size, CASE: case, "confirmed": []}


def make(folder: Path, bundle: Bundle) -> list[Path]:
    """The files that an engine is given: the pair and the pictures. The same bytes on every machine."""
    pair = _build(folder, bundle)
    paths = [folder / p.name for p in bundle.pictures]
    for i, (path, p) in enumerate(zip(paths, bundle.pictures, strict=True)):
        path.write_bytes(png(picture(p.height, p.width, p.bands, bundle.seed + i)))
    return [pair.text, pair.mmproj, *paths]


def _build(folder: Path, bundle: Bundle) -> Pair:
    match bundle.text, bundle.vision:
        case TextSpec() as text, VisionSpec() as vision:
            return build(folder, text, vision, bundle.seed)
        case Gemma3Spec() as gemma, SiglipSpec() as siglip:
            return build_gemma3(folder, gemma, siglip, bundle.seed)
        case halves:
            raise TypeError(f"{bundle.name}: no pair is made of {halves}")


def confirm(folder: Path, chosen: Sequence[Bundle]) -> None:
    """Has other engines run a set and writes into its manifest what they say. ReferenceError where one disagrees."""
    from .confirm import confirm as confirmed_by  # it needs torch

    manifest = _manifest(folder)
    for bundle in chosen:
        case = json.loads((folder / bundle.name / CASE).read_text("utf-8"))
        said = confirmed_by(folder / bundle.name, bundle, case)
        manifest["bundles"][bundle.name]["confirmed"] = [by.rounded() for by in said]
    _write_manifest(folder, manifest)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_text(_text(manifest), "utf-8", newline="\n")


def _text(value: Mapping[str, Any]) -> str:
    """JSON with a line for each key, and in a mapping of mappings for each of its keys."""
    lines = []
    for key, entry in value.items():
        if isinstance(entry, dict) and all(isinstance(inner, dict) for inner in entry.values()):
            inner = ",\n".join(f"  {_json(name)}: {_json(fact)}" for name, fact in entry.items())
            lines.append(f" {_json(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {_json(key)}: {_json(entry)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def check(folder: Path, chosen: Sequence[Bundle]) -> list[str]:
    """What is wrong with a set, a line each, beginning with the name of a bundle: files that are not those announced or
    not those made now, facts that are others, and the first stage that this program computes otherwise."""
    rows = _manifest(folder)["bundles"]
    names = [bundle.name for bundle in chosen]
    problems = [f"{name}: not a bundle of this program" for name in rows if name not in names]
    for bundle in chosen:
        try:
            for problem in _problems(folder / bundle.name, bundle, rows.get(bundle.name)):
                problems.append(f"{bundle.name}: {problem}")
        except (LlavaError, OSError, ValueError, KeyError) as error:
            problems.append(f"{bundle.name}: {' '.join(str(error).split())}")
    return problems


def _problems(folder: Path, bundle: Bundle, row: dict[str, Any] | None) -> Iterator[str]:
    if row is None:
        yield "missing in the manifest"
        return
    if hashes([folder / CASE])[CASE] != row[CASE]:
        yield f"{CASE} is not the one in the manifest"
    case = json.loads((folder / CASE).read_text("utf-8"))
    for name, want in case["files"].items():
        if hashes([folder / name])[name] != want:
            yield f"{name} is not the one in {CASE}"
    with tempfile.TemporaryDirectory(prefix="llava-ref-golden-") as made:
        for path in make(Path(made), bundle):
            if path.read_bytes() != (folder / path.name).read_bytes():
                yield f"{path.name} is not the one made now"
    for profile in bundle.profiles:
        found = list(_differing(folder, bundle, profile, case))
        yield from (f"profile {profile}: {problem}" for problem in found)
        if found:
            return


def _differing(folder: Path, bundle: Bundle, profile: str, case: dict[str, Any]) -> Iterator[str]:
    """The first stage that is out in a run of the stored files, and facts that are others."""
    now = expected(folder, bundle, profile)
    facts = json.loads(json.dumps(now.facts))
    if (first := first_out(now, TraceFile(folder / STAGES), case["bounds"])) is not None:
        yield first
    for name in facts if profile == bundle.profiles[0] else ["token_ids", "greedy"]:
        if name != "margins" and facts[name] != case.get(name):
            yield f"{CASE}: {name} is {_short(facts[name])}, the file has {_short(case.get(name))}"
    if facts["greedy"] == case["greedy"] and not np.allclose(facts["margins"], case["margins"], atol=MARGINS):
        yield f"{CASE}: margins are {facts['margins']}, the file has {case['margins']}"


def first_out(now: Expected, stored: TraceFile, limits: dict[str, Any]) -> str | None:
    """The first stage of a float32 run that is further from the stored one than its bound allows."""
    for name, want in stored.items():
        if name not in now.stages or now.stages[name].shape != want.shape:
            return f"{name} is the first stage out: missing or of another shape"
        limit = limits.get(name, {"whole": {"measure": "max_abs", "float32": 0}})["whole"]
        error = getattr(distance(now.stages[name], want, 0.0), limit["measure"])
        if not error <= limit["float32"]:
            words = f"{limit['measure'].replace('_', ' ')} {error:.2g} over {limit['float32']:.2g}"
            return f"{name} is the first stage out: {words}"
    missing = [name for name in now.stages if name not in stored]
    return f"{missing[0]} is missing" if missing else None


def _short(value: object) -> str:
    text = _json(value)
    return text if len(text) < 100 else text[:97] + "..."


def _manifest(folder: Path) -> dict[str, Any]:
    """ParameterError where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(folder, MANIFEST, f"cannot be read: {error}") from None
    if manifest.get("format") != FORMAT:
        raise ParameterError(folder, "format", f"{manifest.get('format')!r}, expected {FORMAT!r}")
    return dict(manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m llava_ref.conformance.bundles", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare the set with what is made now")
    what.add_argument(
        "--confirm", action="store_true", help="run llama.cpp and transformers over it, and write it down"
    )
    args = parser.parse_args(arguments)
    chosen = list(bundles())
    try:
        if args.check:
            problems = check(args.folder, chosen)
            print("\n".join(problems) or f"{args.folder}: {len(chosen)} bundles, all as they should be")
            return 1 if problems else 0
        (confirm if args.confirm else write)(args.folder, chosen)
    except LlavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
