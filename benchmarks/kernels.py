"""The fused step: what its kernels take of a GPU, and, where there is one, their time.

Without a GPU (``make bench``): the kernels compiled ahead of time for an H100 (registers, spills), the passes of the
search over LLM-like rows in Triton's interpreter, and from these the bytes that a row moves and the least time they
take at the memory's speed. A model, not a measurement.

With one (``make bench-gpu``): on the same rows, at several batch sizes, in bfloat16 and float32,

  fused        the fused step        fused16      the fused step, with the student's top 16
  torch        the step in torch     log_softmax  one torch.log_softmax of both matrices in float32
  bisect       thirty-step bisection in float32, eager (bisect), and compiled by torch.compile (compiled)
  top_p        FlashInfer's top-p sampling kernel on the student's probabilities, where FlashInfer is installed

against the roofline: both matrices read once at the memory's speed, which is measured by a copy.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.solver import ALIGNMENT, ROOT, bisect, llm_like_rows, machine, step_controls
from sglang_trb.blend import blend_step

VOCAB = 151_936
H100_BYTES_PER_SECOND = 3.35e12
"""Of its memory, as its maker says."""

BATCHES = (1, 8, 64, 256, 512)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu: the plan (default), cuda: times")
    parser.add_argument("--rows", type=int, nargs="+", default=BATCHES, help="batch sizes of the times")
    parser.add_argument("--vocab", type=int, default=VOCAB, help="vocabulary size (default %(default)s, Qwen3's)")
    parser.add_argument("--epsilon", type=float, default=0.01, help="budget in nats (default %(default)s)")
    parser.add_argument(
        "--checked", type=int, default=8, help="rows whose passes the plan counts (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="where to write (default benchmarks/results/kernels-DEVICE.json)")
    args = parser.parse_args()
    path = args.json or ROOT / "benchmarks" / "results" / f"kernels-{args.device}.json"
    result = times(args) if args.device == "cuda" else plan(args)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"written to {path}", file=sys.stderr)


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """Registers, bytes and roofline of an H100."""
    from sglang_trb.blend.fused.ahead import compile_all

    passes = interpreted_passes(args)
    mean = sum(passes) / len(passes)
    bytes_of = {name: 2 * args.vocab * dtype.itemsize for name, dtype in DTYPES.items()}  # both rows once
    return {
        "machine": machine("cpu"),
        "compiled_for_sm_90": [dataclasses.asdict(kernel) for kernel in compile_all()],
        "passes_of_the_search": {"rows": len(passes), "mean": mean, "max": max(passes)},
        "bytes_a_row": {
            name: {"statistics": once, "search": mean * once, "draw_at_most": once} for name, once in bytes_of.items()
        },
        "roofline_us_at_64_rows": {name: 1e6 * 64 * once / H100_BYTES_PER_SECOND for name, once in bytes_of.items()},
        "measured_on_a_gpu": "not run",
    }


def interpreted_passes(args: argparse.Namespace) -> list[int]:
    """How often the search of each row passes over the vocabulary; in a process of its own, which interprets."""
    code = f"from benchmarks.kernels import passes; print(passes({args.checked}, {args.vocab}, {args.epsilon}))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    return json.loads(done.stdout)


def passes(rows: int, vocab: int, epsilon: float) -> list[int]:
    """Of LLM-like rows in float32."""
    student_BV, teacher_BV = llm_like_rows(rows, vocab, seed=0)
    output = blend_step(student_BV, teacher_BV, fused_controls(rows, epsilon, "cpu", support=False), ALIGNMENT)
    assert output.passes_B is not None
    return output.passes_B.tolist()


def fused_controls(rows: int, epsilon: float, device: str, *, support: bool, backend: str = "triton") -> Any:
    controls = step_controls(torch.full((rows,), epsilon, device=device))
    return dataclasses.replace(controls, backend=backend, unfused=(), need_support=support)


def times(args: argparse.Namespace) -> dict[str, Any]:
    """Median microseconds of each case, batch size and type, and their ratios to the roofline."""
    bytes_per_second = copy_speed()
    result: dict[str, Any] = {
        "machine": machine("cuda"), "epsilon": args.epsilon, "vocab": args.vocab,
        "copy_bytes_per_second": bytes_per_second, "cases": [],
    }  # fmt: skip
    student_BV, teacher_BV = (x.cuda() for x in llm_like_rows(max(args.rows), args.vocab, seed=0))
    for name, dtype in DTYPES.items():
        for rows in args.rows:
            pair = student_BV[:rows].to(dtype), teacher_BV[:rows].to(dtype)
            roofline = 1e6 * 2 * pair[0].numel() * dtype.itemsize / bytes_per_second
            found = {case: microseconds(run) for case, run in cases(*pair, args.epsilon).items()}
            print(name, rows, {case: round(value, 1) for case, value in found.items()}, file=sys.stderr, flush=True)
            case = {"dtype": name, "rows": rows, "roofline_us": roofline, "us": found}
            result["cases"].append(case | {"fused / roofline": found["fused"] / roofline})
    return result


def cases(student_BV: torch.Tensor, teacher_BV: torch.Tensor, epsilon: float) -> dict[str, Callable[[], Any]]:
    """Each case as a function of no arguments."""
    rows, device = student_BV.shape[0], student_BV.device.type
    epsilon_B = torch.full((rows,), epsilon, device=device)

    def step(**options: Any) -> Callable[[], Any]:
        controls = fused_controls(rows, epsilon, device, **options)
        return lambda: blend_step(student_BV, teacher_BV, controls, ALIGNMENT)

    found: dict[str, Callable[[], Any]] = {
        "fused": step(support=False),
        "fused16": step(support=True),
        "torch": step(support=False, backend="torch"),
        "log_softmax": lambda: (student_BV.float().log_softmax(1), teacher_BV.float().log_softmax(1)),
        "bisect": lambda: bisect(student_BV.float(), teacher_BV.float(), epsilon_B),
        "compiled": partial(torch.compile(bisect, dynamic=False), student_BV.float(), teacher_BV.float(), epsilon_B),
    }
    try:
        from flashinfer.sampling import top_p_sampling_from_probs
    except ImportError:
        return found
    probs_BV = student_BV.float().softmax(1)
    return found | {"top_p": lambda: top_p_sampling_from_probs(probs_BV, 0.95)}


def microseconds(run: Callable[[], Any]) -> float:
    """The median of a hundred runs or more, by the device's clock."""
    from triton.testing import do_bench

    return 1e3 * do_bench(run, warmup=50, rep=200, return_mode="median")


def copy_speed() -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (microseconds(lambda: target.copy_(source)) / 1e6)


if __name__ == "__main__":
    main()
