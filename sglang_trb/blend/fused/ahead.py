"""The kernels compiled ahead of time for a GPU that need not be there: what they take of it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sglang_trb.blend.fused import launch

VOCAB = 151_936
"""Of Qwen3, the paper's models."""

_POINTERS = {
    "forbidden": "i8", "rule": "i8", "epsilon": "fp64", "greedy": "i8", "seed": "i64", "position": "i64", "ids": "i32",
    "masked": "i32", "token": "i64", "error": "i8", "raw": "fp64", "measured": "fp64", "passes": "i32",
}  # fmt: skip
"""The types that the kernels' pointers point to; those of logits vary, the others point to float32."""

_PLAIN = {"TEMPERED": False, "FORBIDS": False, "KEEP_P": True, "KEEP_Q": False, "STORE": False, "TEACHERS": False}
_FULL = {"TEMPERED": True, "FORBIDS": True, "KEEP_P": True, "KEEP_Q": True, "STORE": True, "TEACHERS": True}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel as a GPU would run it.

    Attributes:
        kernel, variant, dtype: which.
        registers: of a thread.
        spilled_bytes: of a thread, stored and loaded because registers ran out.
        shared_bytes: of a program.
    """

    kernel: str
    variant: str
    dtype: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_all(capability: int = 90) -> list[Compiled]:
    """Compile every kernel for a compute capability, such as 90 of an H100, with little and with everything to do.

    Raises:
        RuntimeError: Triton interprets in this process, or ptxas refuses the kernel.
    """
    if launch.INTERPRETED:
        raise RuntimeError("Triton was imported with TRITON_INTERPRET=1: it compiles nothing in this process")
    kernels = launch.measure_rows, launch.draw_rows, launch.most_likely
    variants = (("plain", "bf16", _PLAIN), ("everything", "fp32", _FULL))
    return [_compile(kernel, *variant, capability) for variant in variants for kernel in kernels]


def _compile(kernel: Any, variant: str, dtype: str, flags: dict[str, bool], capability: int) -> Compiled:
    groups = launch.groups_of(VOCAB)
    constants = flags | {
        "TILE": launch.TILE, "GROUPS": groups, "POWER": triton.next_power_of_2(groups), "COLUMNS": 9, "KEPT": 16,
        "OWN_P": 1, "OWN_Q": 2, "MASKED": 1, "LOST_P": 1, "LOST_Q": 0,
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: _type(name, dtype) for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": launch.WARPS})
    registers, spilled = _resources(compiled.asm["ptx"], capability)
    return Compiled(kernel.fn.__name__, variant, dtype, registers, spilled, compiled.metadata.shared)


def _type(name: str, logits: str) -> str:
    if not name.endswith("_ptr"):
        return "i32"
    if name in ("student_ptr", "teacher_ptr"):
        return f"*{logits}"
    return "*" + _POINTERS.get(name.removesuffix("_ptr"), "fp32")


def _resources(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, as Triton's own ptxas reports them."""
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(ptxas), "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas refused the kernel: {done.stderr.strip()}")
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", done.stderr))
    return int(re.findall(r"Used (\d+) registers", done.stderr)[0]), spilled
