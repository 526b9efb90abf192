"""Time and accuracy of the blend's solver against the straightforward ways to solve it, in one run.

Rows: the student's logits fall with the logarithm of a random rank (Zipf, exponent 1.2), plus Gaussian noise; the
teacher's are the student's plus Gaussian noise of deviation 1.4, half of its variance shared by neighbouring ids.
KL(p || q) comes out between 0.5 and 1.2 nats and is reported. Every case gets the same rows in the same groups. The
solvers return log mu, beta and KL; `step` also a drawn token and its statistics.

  solver       trust_region_blend(backend="torch"): float64, bracketed search
  bisect64     log-softmax of both rows, then 30 × [mix, log-sum-exp, KL] in float64
  bisect32     the same in float32, as a prototype would
  log_softmax  one torch.log_softmax of both row sets in float32: the floor for anything that reads both
  step         blend_step with supports: what a server runs for each token

Cases are interleaved, so that a disturbance of the machine hits all of them. What it leaves out: filters, penalties and
the other rules.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sglang_trb.blend import BlendOutput, RowControls, StopAlignment, blend_step, reference, solver, trust_region_blend
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.types import COLUMN_DTYPES, TOP_K_OFF
from sglang_trb.wire.params import Rule
from sglang_trb.wire.rules import PARAMETERS

ROOT = Path(__file__).resolve().parent.parent
BISECTIONS = 30
ALIGNMENT = StopAlignment((3,), (5, 3), 3)
RATIOS = [("solver", "bisect64"), ("solver", "bisect32"), ("solver", "log_softmax"), ("step", "log_softmax")]


def main() -> None:
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    student_BV, teacher_BV = (x.to(args.device) for x in llm_like_rows(args.rows, args.vocab, args.seed))
    cases = make_cases(student_BV, teacher_BV, args)
    seconds = measure(cases, args)
    result = {
        "machine": machine(args.device),
        "shape": [args.rows, args.vocab],
        "dtype": str(student_BV.dtype).removeprefix("torch."),
        "epsilon": args.epsilon,
        "group_rows": args.group,
        "repeats": args.repeats,
        "pair": pair_statistics(student_BV, teacher_BV, args),
        "milliseconds": {name: quartiles(values) for name, values in seconds.items()},
        "ratios": {f"{a} / {b}": median(seconds[a]) / median(seconds[b]) for a, b in RATIOS},
        "accuracy": accuracy(cases, student_BV, teacher_BV, args),
    }
    print_tables(result)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {args.json}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default %(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="rows of a batch (default %(default)s)")
    parser.add_argument("--vocab", type=int, default=151_936, help="vocabulary size (default %(default)s, Qwen3's)")
    parser.add_argument("--epsilon", type=float, default=0.01, help="budget in nats (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per case (default %(default)s)")
    parser.add_argument(
        "--group", type=int, help="rows handed to a case at a time (default 4 on a CPU, which bounds memory, else all)"
    )
    parser.add_argument("--checked", type=int, default=4, help="rows compared with the reference (default %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads on the CPU (default: torch's own choice)")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic rows (default %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write (default benchmarks/results/solver-DEVICE.json)")
    args = parser.parse_args()
    args.group = args.group or (4 if args.device == "cpu" else args.rows)
    args.json = args.json or ROOT / "benchmarks" / "results" / f"solver-{args.device}.json"
    return args


def llm_like_rows(rows: int, vocab: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher logits float32 [rows, vocab]; see the top of the file."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn(rows, vocab, generator=generator)

    ranks_BV = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(rows)])
    student_BV = noise().mul_(0.5) - 1.2 * (ranks_BV + 1.0).log()
    own_BV, shared_BV = noise(), noise()
    shared_BV = (shared_BV + shared_BV.roll(1, dims=1) + shared_BV.roll(2, dims=1)) / 3**0.5
    return student_BV, student_BV + 1.4 * (own_BV + shared_BV) / 2**0.5


def make_cases(
    student_BV: torch.Tensor, teacher_BV: torch.Tensor, args: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Each case as a function of no arguments that returns its groups' results."""
    epsilon_B = torch.full((args.rows,), args.epsilon, device=args.device)
    controls = step_controls(epsilon_B)
    groups = [slice(start, start + args.group) for start in range(0, args.rows, args.group)]

    def grouped(case: Callable[[slice], Any]) -> Callable[[], Iterator[Any]]:
        return lambda: (case(rows) for rows in groups)

    return {
        "solver": grouped(lambda g: trust_region_blend(student_BV[g], teacher_BV[g], epsilon_B[g], backend="torch")),
        "bisect64": grouped(lambda g: bisect(student_BV[g].double(), teacher_BV[g].double(), epsilon_B[g].double())),
        "bisect32": grouped(lambda g: bisect(student_BV[g], teacher_BV[g], epsilon_B[g])),
        "log_softmax": grouped(lambda g: (student_BV[g].log_softmax(1), teacher_BV[g].log_softmax(1))),
        "step": grouped(lambda g: blend_step(student_BV[g], teacher_BV[g], controls.rows(g.start, g.stop), ALIGNMENT)),
    }


def bisect(student_BV: torch.Tensor, teacher_BV: torch.Tensor, epsilon_B: torch.Tensor) -> BlendOutput:
    """The largest feasible beta by bisection, one full mix, normalisation and KL per step."""
    log_p_BV, log_q_BV = student_BV.log_softmax(1), teacher_BV.log_softmax(1)

    def mixed(beta_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_mu_BV = torch.lerp(log_p_BV, log_q_BV, beta_B[:, None])
        log_mu_BV = log_mu_BV - log_mu_BV.logsumexp(1, keepdim=True)
        return log_mu_BV, (log_mu_BV.exp() * (log_mu_BV - log_p_BV)).sum(1)

    low_B, high_B = torch.zeros_like(epsilon_B), torch.ones_like(epsilon_B)
    low_B = torch.where(mixed(high_B)[1] <= epsilon_B, high_B, low_B)
    for _ in range(BISECTIONS):
        middle_B = (low_B + high_B) / 2
        fits_B = mixed(middle_B)[1] <= epsilon_B
        low_B, high_B = torch.where(fits_B, middle_B, low_B), torch.where(fits_B, high_B, middle_B)
    log_mu_BV, kl_B = mixed(low_B)
    return BlendOutput(log_mu_BV.float(), low_B.float(), kl_B.float())


def step_controls(epsilon_B: torch.Tensor) -> RowControls:
    """Trust-region rows with nothing else asked for but the student's support, as the training loop asks."""
    ones_B = torch.ones_like(epsilon_B)
    neutral = {
        name: torch.full_like(epsilon_B, p.neutral, dtype=COLUMN_DTYPES[p.type]) for name, p in PARAMETERS.items()
    }
    return RowControls(
        rule_B=torch.full_like(epsilon_B, Rule.TRUST_REGION.code, dtype=torch.int8),
        settings=neutral | {"epsilon": epsilon_B.double()},
        temperature_B=ones_B,
        top_p_B=ones_B,
        top_k_B=torch.full_like(epsilon_B, TOP_K_OFF, dtype=torch.int32),
        min_p_B=torch.zeros_like(epsilon_B),
        greedy_B=torch.zeros_like(epsilon_B, dtype=torch.bool),
        seed_B=torch.arange(len(epsilon_B), device=epsilon_B.device),
        position_B=torch.zeros_like(epsilon_B, dtype=torch.int64),
        work=frozenset({Rule.TRUST_REGION.value}),
        any_filter=False,
        any_temperature=False,
        need_support=True,
    )


def measure(cases: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each repeat of each case, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(-1, args.repeats):
        for name, case in cases.items():
            print(
                f"\r{'warm-up' if repeat < 0 else f'{repeat + 1}/{args.repeats}'}  {name:12}", end="", file=sys.stderr
            )
            synchronise(args.device)
            started = time.perf_counter()
            for _ in case():
                pass
            synchronise(args.device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    return seconds


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def pair_statistics(student_BV: torch.Tensor, teacher_BV: torch.Tensor, args: argparse.Namespace) -> dict[str, float]:
    """KL(p || q) of the pair, and how often the search passed over the vocabulary."""
    kls, passes = [], []
    for i in range(min(args.rows, 16)):
        p, q = (Distribution.from_logits(x[i : i + 1].double()) for x in (student_BV, teacher_BV))
        kls.append((p.mean(p.log_weights_BV) - p.mean(q.log_weights_BV)).item())
        passes.append(search_passes(p, q, args.epsilon))
    return {
        "kl_student_teacher_median": median(kls),
        "kl_student_teacher_min": min(kls),
        "kl_student_teacher_max": max(kls),
        "search_passes_mean": statistics.mean(passes),
        "search_passes_max": max(passes),
        "search_passes_on_a_gpu": solver.TRIPS,
    }


def search_passes(p: Distribution, q: Distribution, epsilon: float) -> int:
    """The fewest passes that end within MARGIN of the budget."""
    epsilon_B = p.log_total_B.new_tensor([epsilon])
    for trips in range(solver.TRIPS):
        blend = solver.solve(p, q, epsilon_B, trips=trips)
        if blend.beta_B.item() == 1.0 or blend.kl_B.item() >= epsilon * (1 - solver.MARGIN):
            return trips
    return solver.TRIPS


def accuracy(
    cases: dict[str, Callable[[], Any]], student_BV: torch.Tensor, teacher_BV: torch.Tensor, args: argparse.Namespace
) -> dict[str, dict[str, float | bool]]:
    """KL of what each solver returns, in float64, against the reference's, over the first rows."""
    result = {}
    epsilon = float(torch.tensor(args.epsilon))
    for name in ("solver", "bisect64", "bisect32"):
        beta_B = next(iter(cases[name]())).beta_B.tolist()
        errors, over = [], []
        for i, beta in enumerate(beta_B[: args.checked]):
            log_p, log_q = (reference.log_softmax(x[i].double().cpu().numpy()) for x in (student_BV, teacher_BV))
            _, _, wanted = reference.blend(log_p, log_q, epsilon)
            achieved = reference.kl(reference.mu_at(log_p, log_q, beta), log_p)
            errors.append(abs(achieved - wanted) / epsilon)
            over.append(achieved / epsilon - 1.0)
        result[name] = {
            "kl_error_over_epsilon_max": max(errors),
            "kl_over_budget_max": max(*over, 0.0),
            "bound_violated": max(over) > 1e-6,  # beta is float32
            "rows": len(errors),
        }
    return result


def median(values: list[float]) -> float:
    return statistics.median(values)


def quartiles(seconds: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"median": 1e3 * middle, "quartile_1": 1e3 * low, "quartile_3": 1e3 * high}


def machine(device: str) -> dict[str, Any]:
    """What ran it; no host names."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def print_tables(result: dict[str, Any]) -> None:
    rows, vocab = result["shape"]
    pair = result["pair"]
    print(f"{rows} × {vocab} {result['dtype']} on {result['machine']['device']}, epsilon {result['epsilon']}")
    print(
        f"KL(p || q) {pair['kl_student_teacher_min']:.2f} to {pair['kl_student_teacher_max']:.2f} nats; "
        f"passes of the search {pair['search_passes_mean']:.1f} on average, {pair['search_passes_max']} at worst\n"
    )
    print(f"{'':14}{'median ms':>10}{'quartiles':>20}   KL error / epsilon, over budget")
    for name, time_ms in result["milliseconds"].items():
        span = f"{time_ms['quartile_1']:.1f} – {time_ms['quartile_3']:.1f}"
        checked = result["accuracy"].get(name)
        note = f"   {checked['kl_error_over_epsilon_max']:.1e}, {checked['kl_over_budget_max']:.1e}" if checked else ""
        print(f"{name:14}{time_ms['median']:10.1f}{span:>20}{note}")
    print()
    for name, ratio in result["ratios"].items():
        print(f"{name:26}{ratio:8.3f}")


if __name__ == "__main__":
    main()
