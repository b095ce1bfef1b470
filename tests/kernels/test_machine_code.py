"""Read the machine code of small kernels whose loops, loads and spills are known, and listings written by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ref.errors import LlavaError
from llava_ref.kernels.machine_code import cuobjdump, loads, loop_loads, parse, read

ROOT = Path(__file__).parents[2]

needs_compiler = pytest.mark.skipif(cuobjdump() is None, reason="Triton's package with cuobjdump is not installed")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Compile tests/kernels/toys.py for sm_90 in a process without the interpreter; return name -> (code, PTX)."""
    folder = tmp_path_factory.mktemp("toys")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(folder / "cache")
    subprocess.run([sys.executable, "-m", "tests.kernels.toys", folder], check=True, env=env, cwd=ROOT)
    return {
        path.stem: (read(path.read_bytes()), path.with_suffix(".ptx").read_text()) for path in folder.glob("*.cubin")
    }


@needs_compiler
def test_a_copy_loop(toys):
    code, ptx = toys["copy"]
    assert code.name == "copy" and 16 <= code.registers <= 64
    assert (code.spills, code.stack, code.shared) == (0, 0, 0)
    first, last = code.main.body[0], code.main.body[-1]
    assert last.opcode == "BRA" and last.target == first.address
    stores = code.main.widths("STG")
    assert code.main.widths("LDG") == stores and stores.keys() == {128}
    assert code.main.barriers == 0 and code.main.products == {}
    assert code.whole.mix["EXIT"] >= 1 and set(code.main.body) < set(code.whole.body)
    assert {(load.bits, load.arguments) for load in loads(ptx)} == {(128, frozenset({0}))}


@needs_compiler
def test_an_unrolled_loop_loads_a_multiple_of_one_trip(toys):
    code, ptx = toys["copy"]
    once = sum(load.bits for load in loop_loads(ptx))
    assert once == 8 * 32  # 1024 numbers by 128 threads
    assert code.main.loaded % once == 0


@needs_compiler
def test_narrow_loads_are_seen(toys):
    code, ptx = toys["copy, strided"]
    assert code.main.widths("LDG").keys() == {32}
    assert {load.bits for load in loads(ptx)} == {32}


@needs_compiler
def test_spills_are_seen(toys):
    assert toys["sums"][0].spills == 0
    spilt = toys["sums, spilt"][0]
    assert spilt.spills > 10 and spilt.stack > 10
    assert spilt.spills == spilt.whole.mix["LDL"] + spilt.whole.mix["STL"]


@needs_compiler
def test_a_loop_of_products(toys):
    code, ptx = toys["product"]
    assert code.main.products.keys() == {"HGMMA"}
    assert code.main.barriers >= 1 and code.whole.mix["BAR"] >= code.main.barriers
    assert code.main.widths("LDGSTS").keys() == {128} and not code.main.widths("LDG")
    assert {load.arguments for load in loop_loads(ptx)} == {frozenset({0}), frozenset({1})}
    assert len(loop_loads(ptx)) < len(loads(ptx))  # those before the loop fill the pipeline


LISTING = """
 Function nested:
  REG:17 STACK:8 SHARED:1040 LOCAL:0 CONSTANT[0]:392
        Function : nested
        /*0000*/                   MOV R1, c[0x0][0x28] ;                  /* 0x00000a00ff017624 */
                                                                           /* 0x000fe400078e00ff */
        /*0010*/                   LDG.E.LTC128B.64 R2, [R4.64] ;          /* 0x0000000000027919 */
        /*0020*/              @!P0 LDG.E.U16.CONSTANT R3, [R4.64+0x8] ;    /* 0x0000000000027919 */
        /*0030*/                   LDL R3, [R1] ;                          /* 0x0000000000027919 */
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;           /* 0x0000000000007b1d */
        /*0050*/               @P1 BRA 0x20 ;                              /* 0xfffffffc00000947 */
        /*0060*/          @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;              /* 0x0000000104047890 */
        /*0070*/               @P2 BRA 0x10 ;                              /* 0xfffffffc00000947 */
        /*0080*/               @P3 BRA 0x90 ;                              /* 0xfffffffc00000947 */
        /*0090*/                   EXIT ;                                  /* 0x000000000000794d */
        /*00a0*/                   BRA 0xa0;                               /* 0xfffffff000007947 */
        /*00b0*/                   NOP;                                    /* 0x0000000000007918 */
"""


def test_the_inner_one_of_two_loops():
    code = parse(LISTING)
    assert (code.registers, code.stack, code.shared, code.spills) == (17, 8, 1040, 1)
    assert [i.name for i in code.main.body] == ["LDG.E.U16.CONSTANT", "LDL", "BAR.SYNC.DEFER_BLOCKING", "BRA"]
    assert code.main.barriers == 1
    assert code.whole.widths("LDG") == {64: 1, 16: 1}
    assert code.whole.mix["NOP"] == 0 and code.whole.mix["UIADD3"] == 1


def test_the_main_loop_loads_most():
    copied = """        /*{0:04x}*/  LDG.E.128 R4, [R2.64] ;  /* */
        /*{1:04x}*/  BRA 0x{0:x} ;  /* */
"""
    longer = LISTING.replace("0x20", "0x30")  # without the load
    assert parse(longer).main.loaded == 0
    code = parse(longer + copied.format(0x100, 0x110))
    assert len(code.loops) == 2 and [i.name for i in code.main.body] == ["LDG.E.128", "BRA"]


PTX = """
.visible .entry f(
    .param .u64 .ptr .global .align 1 f_param_0,
    .param .u64 .ptr .global .align 1 f_param_1,
    .param .u64 f_param_2
)
{
    .reg .b64   %rd<13>;
    .loc    1 11 0                          // f.py:11:0
    ld.param.b64    %rd1, [f_param_0];
    ld.param.b64    %rd2, [f_param_1];
    ld.param.b64    %rd3, [f_param_2];
    mov.b64     %rd9, %rd1;
$L__BB0_1:                              // =>This Inner Loop Header: Depth=1
    .loc    1 12 0                          // f.py:12:0
    add.s64     %rd4, %rd9, %rd3;
    // begin inline asm
    @%p1 ld.global.L1::evict_first.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd4 + 0 ];
    // end inline asm
    add.s64     %rd9, %rd9, 64;
    @%p2 bra    $L__BB0_1;
    selp.b64    %rd5, %rd1, %rd2, %p1;
    ld.global.b16 { %rs1 }, [ %rd5 + 0 ];
    ld.global.b64 { %rd6 }, [ %rd2 + 0 ];
    ld.global.b32 { %r5 }, [ %rd6 + 0 ];
    ld.global.b64 %rd7, [%rd2 + 8];
    ld.global.b32 { %r8 }, [ %rd7 + 0 ];
    cp.async.cg.shared.global [ %r6 + 0 ], [ %rd2 + 16 ], 0x10, 0x10;
    ld.shared.b32 %r7, [%r6];
    ret;
}
"""


def test_loads_by_argument():
    found = [(load.bits, set(load.arguments)) for load in loads(PTX)]
    assert found == [(128, {0}), (16, {0, 1}), (64, {1}), (32, set()), (64, {1}), (32, set()), (128, {1})]
    assert loop_loads(PTX) == loads(PTX)[:1]


@pytest.mark.parametrize("listing, problem", [("", "0 kernels"), (2 * LISTING, "2 kernels")])
def test_a_listing_of_other_than_one_kernel_is_refused(listing, problem):
    with pytest.raises(LlavaError, match=problem):
        parse(listing)


@needs_compiler
def test_what_is_no_cubin_is_refused():
    with pytest.raises(LlavaError, match="cuobjdump: "):
        read(b"no cubin")
