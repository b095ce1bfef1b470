"""Measure what docs/speed.md shows, and write it: `python docs/speed FOLDER [--only TABLE]`.

FOLDER is where the models are, or are written (12 GB). `LLAMA_CPP_LIB` names a native libllama. The machine must be
otherwise idle, for about half an hour. The figures of a machine are kept in a file of results/, from which `python
docs/speed --write` makes the page again without measuring.
"""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path

import page
from machine import facts
from tables import TABLES, Settings

from llava_ref.ops.threads import processors

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser("python docs/speed", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", choices=TABLES, action="append", help="repeatable (default: all)")
    parser.add_argument("--write", action="store_true", help="write the page from what is kept")
    parser.add_argument("--precision", default="fast")
    parser.add_argument("-t", "--threads", type=int, default=processors())
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="fewer models, lengths, tokens: twelve minutes")
    parser.add_argument("--alone", action="store_true", help="without llama.cpp")
    parser.add_argument("--results", type=Path, metavar="FILE", help="where figures are kept (default: by processor)")
    args = parser.parse_args()
    if not args.write:
        if args.folder is None:
            parser.error("name the folder of the models")
        settings = Settings(args.folder, args.precision, args.threads, args.repetitions, not args.alone, args.short)
        results = args.results or RESULTS / f"{re.sub('[^a-z0-9]+', '-', facts()['processor'].lower())}.json"
        kept = json.loads(results.read_text()) if results.exists() else {}
        about = {key: value for key, value in asdict(settings).items() if key != "folder"}
        for name in args.only or TABLES:
            kept[name] = {"facts": facts(), "settings": about, "rows": TABLES[name](settings)}
            results.write_text(json.dumps(kept, indent=1) + "\n")
    page.write({path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))})


if __name__ == "__main__":
    main()
