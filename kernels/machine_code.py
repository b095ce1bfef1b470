"""Read what a compiler made of a kernel: registers, spills and loops from its machine code, load widths from its PTX.

No device is needed. `cuobjdump`, which Triton's wheel carries, prints the machine code (SASS) of a cubin; NVIDIA's
"CUDA Binary Utilities" lists its instructions. A loop is what lies between a backward branch and its target. PTX still
tells which argument a load reads from: there every register that holds an address is computed from the argument's.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llava_ref.errors import LlavaError

GLOBAL_LOADS = ("LDG", "LDGSTS", "UTMALDG")
LOCAL_MEMORY = ("LDL", "STL")
PRODUCTS = ("HMMA", "IMMA", "HGMMA", "IGMMA", "UTCHMMA", "UTCIMMA", "IDP")
"""Matrix products of a warp, of four warps, of Blackwell's tensor memory; IDP is dp4a."""

BITS = {"256": 256, "128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
"""Width of a thread's access by the part of an instruction's name that states it; the others move 32 bits."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the machine code."""

    address: int
    name: str  # with its modifiers: "LDG.E.128"
    operands: str

    @property
    def opcode(self) -> str:
        return self.name.partition(".")[0]

    @property
    def bits(self) -> int:
        """The width that one thread loads or stores."""
        return next((BITS[part] for part in self.name.split(".") if part in BITS), 32)

    @property
    def target(self) -> int | None:
        """The address that a branch goes to."""
        found = re.search(r"0x([0-9a-f]+)", self.operands) if self.opcode == "BRA" else None
        return int(found[1], 16) if found else None


@dataclass(frozen=True, slots=True)
class Loop:
    """The body of an innermost loop, or a whole kernel that has none."""

    body: tuple[Instruction, ...]

    @property
    def mix(self) -> Counter[str]:
        """Count the instructions by opcode."""
        return Counter(i.opcode for i in self.body)

    @property
    def barriers(self) -> int:
        return self.mix["BAR"]

    @property
    def products(self) -> dict[str, int]:
        return {opcode: count for opcode, count in sorted(self.mix.items()) if opcode in PRODUCTS}

    def widths(self, *opcodes: str) -> Counter[int]:
        """Count accesses by their width in bits."""
        return Counter(i.bits for i in self.body if i.opcode in opcodes)

    @property
    def loaded(self) -> int:
        """The bits that one thread loads from global memory."""
        return sum(bits * count for bits, count in self.widths(*GLOBAL_LOADS).items())


@dataclass(frozen=True, slots=True)
class MachineCode:
    """One kernel of a cubin."""

    name: str
    registers: int  # a thread
    stack: int  # bytes a thread
    shared: int  # static bytes a program; Triton's own are dynamic, in its metadata
    spills: int  # instructions that go to local memory
    loops: tuple[Loop, ...]  # innermost ones, in the order of the code
    whole: Loop

    @property
    def main(self) -> Loop:
        """The innermost loop that loads most, else the longest; the whole kernel where there is no loop."""
        return max(self.loops, key=lambda loop: (loop.loaded, len(loop.body)), default=self.whole)


@cache
def cuobjdump() -> Path | None:
    """Find the disassembler in Triton's package, or None."""
    spec = find_spec("triton")
    folders = spec.submodule_search_locations if spec else None
    places = (Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump" for folder in folders or ())
    return next(filter(Path.is_file, places), None)


def read(cubin: bytes) -> MachineCode:
    """Read a cubin that holds one kernel. Raises LlavaError if it cannot be disassembled."""
    tool = cuobjdump()
    if tool is None:
        raise LlavaError("cuobjdump", "path", "not found in Triton's package")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-sass", "-res-usage", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LlavaError("cuobjdump", "cubin", (done.stderr or done.stdout).strip())
    return parse(done.stdout)


def parse(listing: str) -> MachineCode:
    """Parse the output of `cuobjdump -sass -res-usage`. Raises LlavaError if it does not show one kernel."""
    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", listing)
    if len(usage) != 1:
        raise LlavaError("cuobjdump", "cubin", f"{len(usage)} kernels, expected 1")
    name, registers, stack, shared = usage[0]
    code = tuple(_instructions(listing))
    jumps = ((i.address, i.target) for i in code if i.target is not None)
    loops = tuple(Loop(tuple(i for i in code if first <= i.address <= last)) for first, last in _innermost(jumps))
    spills = sum(i.opcode in LOCAL_MEMORY for i in code)
    return MachineCode(name, int(registers), int(stack), int(shared), spills, loops, Loop(code))


def _instructions(listing: str) -> Iterator[Instruction]:
    """Yield the instructions of a listing, predicates taken off; what fills the last lines up (NOP) is left out."""
    for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]*[^;/\s])\s*;", listing):
        name, _, operands = re.sub(r"^@\S+\s+", "", text).partition(" ")
        if name != "NOP":
            yield Instruction(int(address, 16), name, operands.strip())


def _innermost(jumps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn jumps (from, to) into the spans (first, last) of loops that hold no other loop."""
    spans = sorted({(to, at) for at, to in jumps if to < at})
    return [(a, b) for a, b in spans if not any((a, b) != (c, d) and a <= c and d <= b for c, d in spans)]


@dataclass(frozen=True, slots=True)
class Load:
    """A load from global memory in PTX."""

    line: int
    bits: int  # a thread
    arguments: frozenset[int]  # whose memory it may read


def loads(ptx: str) -> list[Load]:
    """Find the loads from global memory in a kernel's PTX, `ld.global` and `cp.async`."""
    lines = _statements(ptx)
    origins = _origins(ptx, lines)
    found = []
    for at, (opcode, operands) in enumerate(lines):
        parts = opcode.split(".")
        if parts[:2] == ["cp", "async"] and "global" in parts:
            bits = 8 * int(operands.split(",")[2], 0)
        elif parts[0] == "ld" and "global" in parts:
            vector = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
            bits = vector * int(parts[-1][1:])
        else:
            continue
        register = re.findall(r"\[\s*(%rd\d+)", operands)[-1]
        found.append(Load(at, bits, origins.get(register, frozenset())))
    return found


def loop_loads(ptx: str) -> list[Load]:
    """Return the loads of one trip of the innermost loop that loads most; all of them where there is no loop."""
    lines, found = _statements(ptx), loads(ptx)
    labels = {opcode[:-1]: at for at, (opcode, _) in enumerate(lines) if opcode.endswith(":")}
    branches = ((at, operands) for at, (opcode, operands) in enumerate(lines) if opcode.partition(".")[0] == "bra")
    spans = _innermost((at, labels[label]) for at, label in branches if label in labels)
    bodies = [[load for load in found if first <= load.line <= last] for first, last in spans]
    return max(bodies, key=lambda body: sum(load.bits for load in body), default=found)


def _statements(ptx: str) -> list[tuple[str, str]]:
    """Split PTX into (opcode, operands); a label is an opcode that ends with a colon."""
    bare = re.sub(r"//[^\n]*|^\s*\.loc[^\n]*", "", ptx, flags=re.MULTILINE)
    labelled = re.sub(r"^(\$\w+:)", r"\1;", bare, flags=re.MULTILINE)
    texts = (re.sub(r"^(@!?%\w+\s+)", "", text.strip(" \t\n{}")) for text in labelled.split(";"))
    return [(opcode, rest.strip()) for opcode, _, rest in (re.sub(r"\s+", " ", t).partition(" ") for t in texts)]


def _origins(ptx: str, lines: Sequence[tuple[str, str]]) -> dict[str, frozenset[int]]:
    """Follow the addresses of pointer arguments through every 64-bit register that is computed from them."""
    header = ptx[ptx.index(".entry") :].partition(")")[0]
    pointers = {int(n) for n in re.findall(r"\.ptr .*_param_(\d+)", header)}
    origins: dict[str, frozenset[int]] = {}
    before = -1
    while before != (before := sum(map(len, origins.values()))):  # a loop's registers may be used above their line
        for opcode, operands in lines:
            target, _, sources = operands.partition(",")
            if not re.fullmatch(r"%rd\d+", target) or "global" in opcode.split("."):  # what is loaded is no argument
                continue
            of = {int(n) for n in re.findall(r"_param_(\d+)", sources)} & pointers
            of = of.union(*(origins.get(register, ()) for register in re.findall(r"%rd\d+", sources)))
            origins[target] = origins.get(target, frozenset()) | of
    return origins
