"""Print the table of the model card: share of exact answers by way of asking, profile and backend.

python -m training.table [N] [SEED]
"""

import sys

import llava_ref
from llava_ref.profiles import PROFILES
from llava_ref.scenes import WAYS
from llava_ref.tools.demo import evaluate


def main() -> None:
    """Ask N questions for each cell of the table."""
    n, seed = (int(x) for x in [*sys.argv[1:], *("500", "1")[len(sys.argv) - 1 :]])
    columns = [(profile, backend) for profile in PROFILES for backend in ("torch", "numpy")]
    print("| asked | " + " | ".join(f"`{profile}`, {backend}" for profile, backend in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for way in WAYS:
        cells = []
        for profile, backend in columns:
            model = llava_ref.load(*llava_ref.embedded(), profile=profile, backend=backend)
            cells.append(f"{evaluate(model, n, seed, way)[1].total() / n:.1%}")
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
