"""Fuzz the decoding of pictures: any bytes give an array within limits or one ImageError, soon, in little memory.

Small valid files of all five formats are flipped, cut, spliced, repeated, and given large numbers. For a longer run:
`python -m tests.images.test_fuzz --seconds 600 --seed 1`. A failing file is saved, and the message names it.
"""

import argparse
import io
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ref.errors import ImageError
from llava_ref.images import decoding as images

ROOT = Path(__file__).parents[2]
MEMORY = 3 << 30  # bytes of address space for the whole process
SLOW = 30.0  # seconds for one picture: a hundred times what they take
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 60_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def seeds():
    """Yield small files that together use most features of the formats."""
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (11, 13, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    colour, clear = Image.fromarray(rgba[..., :3]), Image.fromarray(rgba)
    grey, palette = colour.convert("L"), colour.convert("P")
    writings = [
        *[(image, "PNG", {}) for image in (colour, clear, grey, palette, grey.convert("LA"), grey.convert("1"))],
        (Image.fromarray(rng.integers(0, 65536, (7, 5), dtype=np.uint16)), "PNG", {}),
        (palette, "PNG", {"transparency": bytes(range(256))}),
        (colour, "PNG", {"exif": exif, "dpi": (72, 72), "icc_profile": b"profile"}),
        (colour, "PNG", {"save_all": True, "append_images": [colour.rotate(180)]}),
        *[(image, "JPEG", {}) for image in (colour, grey, colour.convert("CMYK"))],
        (colour, "JPEG", {"progressive": True, "exif": exif, "icc_profile": b"profile", "comment": b"hello"}),
        (colour, "MPO", {"save_all": True, "append_images": [colour.rotate(180)]}),
        (colour, "WEBP", {}),
        (clear, "WEBP", {"lossless": True, "exif": exif}),
        (clear, "WEBP", {"save_all": True, "append_images": [clear.rotate(180)]}),
        (palette, "GIF", {"comment": b"hello", "transparency": 3}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(180)], "interlace": 1}),
        *[(image, "BMP", {}) for image in (colour, clear, grey, palette, grey.convert("1"))],
    ]
    for image, kind, options in writings:
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield file.getvalue()


def mutate(data, corpus, rng):
    """Change a file one to eight times. Half of the PNGs get right checksums, to reach the code after that check."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(
            rng.integers(0, max(1, len(data))) if rng.random() < 0.5 else rng.integers(0, max(1, min(64, len(data))))
        )
        match int(rng.integers(0, 7)):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << int(rng.integers(0, 8))]) if data else b"x"
            case 1:
                data[at : at + 1] = rng.bytes(1)
            case 2:
                del data[at : at + int(rng.integers(1, 32))]
            case 3:
                other = corpus[int(rng.integers(len(corpus)))]
                start = int(rng.integers(len(other)))
                data[at:at] = other[start : start + int(rng.integers(1, 200))]
            case 4:
                data[at:at] = data[at : at + int(rng.integers(1, 64))] * int(rng.integers(1, 50))
            case 5:
                value = NUMBERS[int(rng.integers(len(NUMBERS)))]
                order, width = "<>"[int(rng.integers(2))], "BHI"[int(rng.integers(3))]
                number = struct.pack(order + width, value & (1 << 8 * struct.calcsize(width)) - 1)
                data[at : at + len(number)] = number
            case 6:
                del data[int(rng.integers(len(data) + 1)) :]
    return with_checksums(bytes(data)) if rng.random() < 0.5 else bytes(data)


def with_checksums(data):
    """Correct the checksums of a PNG; return any other file as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    start, out = 8, [data[:8]]
    while start + 12 <= len(data):
        end = start + 8 + struct.unpack_from(">I", data, start)[0]
        if end + 4 > len(data):
            break
        out += [data[start:end], struct.pack(">I", zlib.crc32(data[start + 4 : end]))]
        start = end + 4
    return b"".join(out) + data[start:]


def judge(data, exif, alpha):
    """Decode a file and return the outcome. Raises AssertionError if that is neither an array nor one clear error."""
    began = time.monotonic()
    try:
        got = images.load(data, exif=exif, alpha=alpha)
    except ImageError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 1000, str(error)
        outcome = f"{error.field}: refused"
    else:
        assert got.rgb.dtype == np.uint8 and got.rgb.ndim == 3 and got.rgb.shape[2] == 3
        assert 0 < got.width * got.height <= images.MAX_PIXELS and got.orientation in range(1, 9)
        outcome = f"{got.format}: an array"
    assert time.monotonic() - began < SLOW, "too slow"
    return outcome


def fuzz(seconds, seed, most=None):
    """Count the outcomes. A file with any other error is saved, and the error is raised again with its path."""
    corpus, rng, counts = list(seeds()), np.random.default_rng(seed), Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end and counts.total() != most:
        data = mutate(corpus[int(rng.integers(len(corpus)))], corpus, rng)
        try:
            counts[
                judge(data, *(("ignore", "convert"), ("apply", "drop"), ("apply", "white"))[counts.total() % 3])
            ] += 1
        except BaseException as error:
            path = Path(tempfile.gettempdir()) / f"llava-ref-picture-{zlib.crc32(data):08x}"
            path.write_bytes(data)
            raise AssertionError(f"{path}: {type(error).__name__}: {error}") from error
    return counts


def test_the_seeds_are_pictures():
    outcomes = Counter(judge(data, "ignore", "convert") for data in seeds())
    assert all(outcome.endswith("an array") for outcome in outcomes) and len(outcomes) == 5, outcomes


def test_mutated_pictures_give_an_array_or_an_image_error():
    """Fuzz in a process with limited memory, so that a file with a false size fails here and not the machine."""
    command = [sys.executable, "-m", __name__, "--seconds", "4", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "an array" in done.stdout and "refused" in done.stdout


def main():
    parser = argparse.ArgumentParser(description="Decode mutated pictures with llava_ref.images.decoding.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counts = fuzz(args.seconds, args.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{counts.total()} pictures, {peak} MB at most: {dict(counts.most_common())}")


if __name__ == "__main__":
    main()
