"""Compare the output that a page shows with what the command prints."""

import re
from math import isclose

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")
QUANTITY = re.compile(r"\d (?:ms|s|MB|GB/s|tokens/s)\b")  # its line holds what was measured: any numbers
OF_THE_MACHINE = re.compile(r"\d+\.\d+\.\d+[\w.+]*|(?<=differs from )\S+ on: \d+")  # versions; where backends part
CLOSE, ROUNDING = 0.1, 1e-5


def difference(shown: str, printed: str) -> str:
    """Return what a page shows and the command does not print, or prints beside it; "" if there is nothing.

    A line `...` of the page stands for any lines, the same at the end of a line for its rest. Blanks do not count, and
    other processors add in another order: fractions are the same within a tenth, and those of float32's rounding, under
    1e-5, within a factor of nearly two.
    """
    left, skips = printed.splitlines(), False
    for line in shown.splitlines():
        if line.strip() == "...":
            skips = True
            continue
        found = next((i for i, other in enumerate(left) if _alike(line, other)), None)
        if found is None or (found and not skips):
            return f"shown: {line}\nprinted: {left[0] if left else 'nothing'}"
        left, skips = left[found + 1 :], False
    return f"printed: {left[0]}\nnot shown" if left and not skips else ""


def _alike(shown: str, printed: str) -> bool:
    shown, printed = (" ".join(OF_THE_MACHINE.sub("-", line).split()) for line in (shown, printed))
    if shown.endswith("..."):
        shown = shown.removesuffix("...").rstrip()
        printed = printed[: len(shown)].rstrip()
    if NUMBER.sub("0", shown) != NUMBER.sub("0", printed):
        return False
    measured = bool(QUANTITY.search(shown))
    return measured or all(map(_equal, NUMBER.findall(shown), NUMBER.findall(printed)))


def _equal(a: str, b: str) -> bool:
    if re.search("[.e]", a + b):
        x, y = (float(number.replace(",", "")) for number in (a, b))
        return isclose(x, y, rel_tol=0.45 if max(x, y) < ROUNDING else CLOSE)
    return a == b
