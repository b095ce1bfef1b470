"""Compile `trace.cpp` against the llama.cpp that PyPI's xllamacpp carries.

`python -m llava_ref.conformance.examples.llama_cpp.build OUT` writes the program OUT.

The library is the one in its wheel, the headers are those of its source distribution of the same version, so both are
of one build. The compiler is `c++`, or else that of PyPI's ziglang. The library is a Python module, too, and refers to
Python's symbols, none of which llama.cpp uses; the program defines them as nothing.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ...engines.llama_cpp.library import shared_object

SOURCE = Path(__file__).with_name("trace.cpp")
HEADERS = re.compile(r"[^/]+/thirdparty/llama\.cpp/(?:include|ggml/include|tools/mtmd)/([\w-]+\.h)")
PYTHON = re.compile(rb"(?<=\0)_?Py[A-Za-z_0-9]+(?=\0)")


def missing() -> str | None:
    """Say why the program cannot be compiled here; None if it can."""
    if sys.platform != "linux":
        return "only for Linux: elsewhere a Python module cannot be linked with"
    return None if _compiler() else "no C++ compiler: install g++ or clang, or pip install ziglang"


def _compiler() -> list[str] | None:
    if found := shutil.which("c++"):
        return [found]
    return [sys.executable, "-m", "ziglang", "c++"] if find_spec("ziglang") else None


def headers() -> Path:
    """Return the folder of llama.cpp's headers, in the virtual environment; the first time, download them (38 MB)."""
    release = f"xllamacpp=={version('xllamacpp')}"
    folder = Path(sys.prefix, "include", release)
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=sys.prefix) as temporary:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "xllamacpp"]
            subprocess.run([*pip, "--dest", temporary, release], check=True)
            (archive,) = Path(temporary).glob("*.tar.gz")
            made = Path(temporary, "headers")
            made.mkdir()
            with tarfile.open(archive) as files:
                for member in files:
                    found, data = HEADERS.fullmatch(member.name), files.extractfile(member)
                    if found and data:
                        (made / found[1]).write_bytes(data.read())
            folder.parent.mkdir(parents=True, exist_ok=True)
            made.rename(folder)
    return folder


def build(out: Path, source: Path = SOURCE) -> None:
    """Compile and link a program. Raises CalledProcessError if the compiler refuses it."""
    command, library = _compiler() or [], shared_object()
    with tempfile.TemporaryDirectory() as folder:
        absent = Path(folder, "python_symbols.cpp")
        names = sorted(set(PYTHON.findall(library.read_bytes())))
        absent.write_text("".join(f'extern "C" {{ char {name.decode()}[1]; }}\n' for name in names))
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{headers()}", "-Wl,--allow-shlib-undefined"]
        subprocess.run([*command, *flags, str(source), str(absent), str(library), "-o", str(out)], check=True)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    if len(sys.argv) != 2:
        sys.exit("expected one argument: the program to write")
    try:
        build(Path(sys.argv[1]))
    except subprocess.CalledProcessError:
        sys.exit("trace.cpp was not built: the message of pip or of the compiler is above")
