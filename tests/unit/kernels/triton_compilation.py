"""Compiles the attention programs and those of rows for GPUs that need not be here; run by test_triton_compilation.py.

Prints the shared memory that each takes, in bytes. What only a GPU shows is left: that they run, and how fast.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.kernels.gpu.programs import attention, rows

#: Of pointers by their names, where the model's type is not meant.
TYPES = {
    **dict.fromkeys(("slots", "out_ids"), "i64"),
    **dict.fromkeys(("query_starts", "context_lengths", "block_tables", "part_index", "part_finite"), "i32"),
    **dict.fromkeys(("part_best", "part_total", "part_weighted", "residual", "cosine", "sine"), "fp32"),
}
NUMBERS = ("num_sequences", "entries")
FRACTIONS = ("scale", "eps")


def compile_program(program: Any, capability: int, dtype: str, num_warps: int, **constants: Any) -> None:
    signature = {}
    for name in program.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in FRACTIONS:
            signature[name] = "fp32"
        elif name in NUMBERS or name.endswith("stride"):
            signature[name] = "i32"
        else:
            signature[name] = "*" + TYPES.get(name, dtype)
    compiled = triton.compile(
        ASTSource(fn=program, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": 2},
    )
    assert compiled.asm["cubin"]
    print(capability, program.__name__, dtype, compiled.metadata.shared)


def compile_attention(capability: int, dtype: str, head_dim: int, tile: int, num_rows: int) -> None:
    group, dim = 2, triton.next_power_of_2(head_dim)
    block = {"BLOCK_SIZE": 16, "HEAD_DIM": head_dim, "DIM": dim}
    seen = {"WINDOW": 2**30, "HEADS": 16, "TILE": tile}
    parts = {"SEGMENTS": 8, "LEAST": 128}
    shared = {**seen, **block, "GROUP": group, "IS_WIDENED": False}
    compile_program(attention.write_cache, capability, dtype, 1, **block)
    compile_program(attention.decode, capability, dtype, 4, **shared, **parts, ROWS=16)
    compile_program(attention.merge, capability, dtype, 1, **seen, **parts, HEAD_DIM=head_dim, DIM=dim)
    queries = {"ROWS": num_rows, "QUERIES": num_rows // group, "SEARCHED": 256}
    compile_program(attention.prefill, capability, dtype, 4 if dim <= 128 else 8, **shared, **queries)


def main() -> None:
    compile_attention(80, "bf16", 128, 64, 64)
    compile_attention(90, "fp16", 80, 64, 64)
    compile_attention(80, "fp32", 256, 16, 32)
    for dtype in ("bf16", "fp32"):
        compile_program(rows.add_norm, 90, dtype, 4, SIZE=1000, WIDTH=1024, HAS_DELTA=True)
        compile_program(rows.norm_rotate, 90, dtype, 1, NUM_QUERIES=16, HALF=40, WIDTH=64, HAS_NORM=True)
        compile_program(rows.silu_mul, 90, dtype, 4, SIZE=3072, WIDTH=1024)
        compile_program(rows.greatest_of_parts, 90, dtype, 4, PARTS=16, WIDTH=1024)
    compile_program(rows.greatest_of_rows, 90, "i64", 1, PARTS=16)


if __name__ == "__main__":
    main()
