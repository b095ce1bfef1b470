"""Make and check golden bundles: small random pairs with their results at every stage, for any engine's tests.

    python -m llava_ref.conformance.bundles FOLDER             writes the set
    python -m llava_ref.conformance.bundles --check FOLDER     makes the set again and compares
    python -m llava_ref.conformance.bundles --confirm FOLDER   runs llama.cpp and transformers on it

A bundle is a folder that needs nothing else: `text.gguf`, `mmproj.gguf`, pictures, `case.json` (the prompt, its token
ids, the profile and its quirks, the tokens that follow, SHA-256 of every file, bounds for every stage) and
`stages.safetensors`, a trace file (`llava_ref.tracing.tracefile`). `manifest.json` lists the bundles. docs/golden.md
is for users of the set; `recipes` says what each bundle is for.

The whole set is stored in the repository, `conformance/golden`, because its users have another engine and not this
program. Everything comes from seeds, so the set can be made again and compared: files of models and pictures byte for
byte, stages within the bounds of float32, token ids exactly.

Files have the same bytes on every machine. A weight is a random number rounded to at most 24 bits, so the last bits of
a double, in which the `log` and `exp` of two machines differ (numpy's normal deviates use them), do not reach the file;
the chance that one does in the whole set is about one in 100,000. Metadata are written key by key in a fixed order.
Pictures are integers, stored without compression. The numbers of a stage depend on the order of sums, hence on the
machine: they are never compared by bytes, and `write` starts without confirmations.
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
from ..pairs.idefics3 import Idefics3Spec, build_idefics3
from ..pairs.internvl import InternVLSpec, build_internvl
from ..pairs.mllama import MllamaTextSpec, MllamaVisionSpec, build_mllama
from ..pairs.pairs import Pair, TextSpec, VisionSpec, build
from ..pairs.pixtral import PixtralSpec, build_pixtral
from ..pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl
from .bundle import Bundle
from .case import FORMAT, MARGINS, ExpectedBundle, expected
from .pictures import picture, png
from .recipes import bundles

MANIFEST, CASE, STAGES = "manifest.json", "case.json", "stages.safetensors"
VERSIONS = ("llava-ref", "numpy", "gguf")


def write(folder: Path, chosen: Iterable[Bundle]) -> None:
    """Write bundles and their manifest, unconfirmed."""
    rows = {bundle.name: _write(folder / bundle.name, bundle) for bundle in chosen}
    made_by = {name: version(name) for name in VERSIONS}
    _write_manifest(folder, {"format": FORMAT, "licence": "MIT", "made_by": made_by, "bundles": rows})


def _write(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """Write one bundle; return its entry in the manifest."""
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
    """Write the inputs of an engine, the pair and the pictures, in the same bytes on every machine."""
    pair = _build(folder, bundle)
    paths = [folder / p.name for p in bundle.pictures]
    for i, (path, p) in enumerate(zip(paths, bundle.pictures, strict=True)):
        path.write_bytes(png(picture(p.height, p.width, p.bands, bundle.seed + i)))
    return [pair.text, pair.mmproj, *paths]


def _build(folder: Path, bundle: Bundle) -> Pair:
    match bundle.text, bundle.vision:
        case MllamaTextSpec() as looking, MllamaVisionSpec() as tiles:
            return build_mllama(folder, looking, tiles, bundle.seed)
        case TextSpec() as text, VisionSpec() as vision:
            return build(folder, text, vision, bundle.seed)
        case TextSpec() as text, Idefics3Spec() as idefics:
            return build_idefics3(folder, text, idefics, bundle.seed)
        case (TextSpec() | QwenTextSpec()) as text, InternVLSpec() as intern:
            return build_internvl(folder, text, intern, bundle.seed)
        case TextSpec() as text, PixtralSpec() as pixtral:
            return build_pixtral(folder, text, pixtral, bundle.seed)
        case Gemma3Spec() as gemma, SiglipSpec() as siglip:
            return build_gemma3(folder, gemma, siglip, bundle.seed)
        case QwenTextSpec() as qwen, QwenVisionSpec() as tower:
            return build_qwen2vl(folder, qwen, tower, bundle.seed)
        case halves:
            raise TypeError(f"{bundle.name}: no pair is made of {halves}")


def confirm(folder: Path, chosen: Sequence[Bundle]) -> None:
    """Run other engines on a set and write their results into its manifest.

    Raises ReferenceError if one disagrees."""
    from .confirm import confirm as confirmed_by  # it needs torch

    manifest = _manifest(folder)
    for bundle in chosen:
        case = json.loads((folder / bundle.name / CASE).read_text("utf-8"))
        results = confirmed_by(folder / bundle.name, bundle, case)
        manifest["bundles"][bundle.name]["confirmed"] = [result.rounded() for result in results]
    _write_manifest(folder, manifest)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_text(_text(manifest), "utf-8", newline="\n")


def _text(value: Mapping[str, Any]) -> str:
    """Write JSON with one line per key, and in a mapping of mappings one line per inner key."""
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
    """Check a set; return one line per problem, which begins with the name of a bundle.

    A problem is a file that differs from its hash or from the one made now, a fact that differs, or the first stage of
    a run that exceeds its bound."""
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
        problems = list(_differing(folder, bundle, profile, case))
        yield from (f"profile {profile}: {problem}" for problem in problems)
        if problems:
            return


def _differing(folder: Path, bundle: Bundle, profile: str, case: dict[str, Any]) -> Iterator[str]:
    """Yield the first stage that exceeds its bound in a run of the stored files, and the facts that differ."""
    now = expected(folder, bundle, profile)
    facts = json.loads(json.dumps(now.facts))
    if (first := first_exceeding(now, TraceFile(folder / STAGES), case["bounds"])) is not None:
        yield first
    for name in facts if profile == bundle.profiles[0] else ["token_ids", "greedy"]:
        if name != "margins" and facts[name] != case.get(name):
            yield f"{CASE}: {name} is {_short(facts[name])}, the file has {_short(case.get(name))}"
    if facts["greedy"] == case["greedy"] and not np.allclose(facts["margins"], case["margins"], atol=MARGINS):
        yield f"{CASE}: margins are {facts['margins']}, the file has {case['margins']}"


def first_exceeding(now: ExpectedBundle, stored: TraceFile, limits: dict[str, Any]) -> str | None:
    """Describe the first stage of a float32 run whose distance from the stored one exceeds its bound; None if none."""
    for name, want in stored.items():
        if name not in now.stages or now.stages[name].shape != want.shape:
            return f"{name} is the first stage that differs: missing or of another shape"
        limit = limits.get(name, {"whole": {"measure": "max_abs", "float32": 0}})["whole"]
        error = getattr(distance(now.stages[name], want, 0.0), limit["measure"])
        if not error <= limit["float32"]:
            words = f"{limit['measure'].replace('_', ' ')} {error:.2g} over {limit['float32']:.2g}"
            return f"{name} is the first stage that exceeds its bound: {words}"
    missing = [name for name in now.stages if name not in stored]
    return f"{missing[0]} is missing" if missing else None


def _short(value: object) -> str:
    text = _json(value)
    return text if len(text) < 100 else text[:97] + "..."


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest. Raises ParameterError if there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(folder, MANIFEST, f"cannot be read: {error}") from None
    if manifest.get("format") != FORMAT:
        raise ParameterError(folder, "format", f"{manifest.get('format')!r}, expected {FORMAT!r}")
    return dict(manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m llava_ref.conformance.bundles", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="make the set again and compare")
    what.add_argument(
        "--confirm", action="store_true", help="run llama.cpp and transformers on it and record the results"
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
