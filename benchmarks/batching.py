"""Micro-batches of a number of tokens against micro-batches of a number of sequences, in one run.

One engine makes the same update both ways in turn; learning rate and weights stay where they are, so loss and gradient
norm must agree. The number of tokens is what the number of sequences computes at most, so the largest forward is the
same. Lengths are those of a run's journal, or log-normal as in long reasoning at an eighth of its scale:

    trb train --config examples/micro/trb.yaml checkpoints.keep_journals=true
    python -m benchmarks.batching --journal runs/micro-trb/journal/step-000000.rollouts --sizes 16 64 --json …
    python -m benchmarks.batching
    torchrun --nproc-per-node 2 -m benchmarks.batching --zero-stage 3 --json …

Without a journal it also deals 256 lengths of the full scale to several processes, which computes nothing.
"""

from __future__ import annotations

import trainer  # noqa: F401  # isort: skip  # first: what it sets in the environment holds once torch is loaded

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.serving import cpu_name, progress
from benchmarks.training import AGREEMENT, make_model, make_rollout
from sglang_trb.blend import StopAlignment
from sglang_trb.pair.pair import Pair
from trainer.learner.batches import Weighted, collate, shard_by_tokens, shard_rollouts
from trainer.learner.grouping import deal_by_tokens
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.rollout import Rollout

if TYPE_CHECKING:  # DeepSpeed is imported where it is used
    from trainer.learner.engine import TrainEngine
    from trainer.learner.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
MICRO_PAIR = ROOT / "examples" / "micro" / "pair"
MEDIAN, SPREAD, LONGEST, PROMPTS = 1200, 0.9, 7168, (60, 400)
"""Tokens of log-normal responses, cut at the longest, and the range of their prompts."""
SCALE = 8
WAYS = ("sequences", "tokens")


def main() -> None:
    from trainer.learner.processes import Processes

    args = parse_arguments()
    with Processes() as processes:
        result = result_of(args, processes)
        if processes.leads:
            print(json.dumps(result, indent=2))
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result, indent=2) + "\n")


def result_of(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    if args.journal:
        with StepJournal(args.journal) as journal:
            rollouts = journal.rollouts()
        pair = Pair.load(str(MICRO_PAIR / "student"), str(MICRO_PAIR / "teacher"))
        return measure(args, processes, rollouts, pair)
    with tempfile.TemporaryDirectory() as model:
        make_model(Path(model), args)
        rng = np.random.default_rng(0)
        rollouts = [
            make_rollout(rng, i, args.vocab, prompt // SCALE, max(response // SCALE, 1))
            for i, (prompt, response) in enumerate(log_normal(args.rollouts))
        ]
        result = measure(args, processes, rollouts, Pair(model, model, args.vocab, StopAlignment((0,), (0,), 0)))
    return result | {"full_scale": [full_scale(count) for count in (1, 4, 8)]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, help="of a step of the micro pair; its rollouts are trained on")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=64, help="of a step (default %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8], help="sequences of a forward")
    parser.add_argument("--zero-stage", type=int, default=0, help="of DeepSpeed (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="updates of each way, after one that is not timed")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "batching-cpu.json")
    return parser.parse_args()


def log_normal(count: int) -> list[tuple[int, int]]:
    """Tokens of prompts and responses, at the full scale."""
    rng = np.random.default_rng(0)
    responses = np.minimum(np.exp(rng.normal(np.log(MEDIAN), SPREAD, count)), LONGEST).astype(int)
    return list(zip(rng.integers(*PROMPTS, count).tolist(), responses.tolist(), strict=True))


def measure(args: argparse.Namespace, processes: Processes, rollouts: Sequence[Rollout], pair: Pair) -> dict[str, Any]:
    from trainer.config.run import Optimisation
    from trainer.learner.engine import TrainEngine
    from trainer.learner.student import Student
    from trainer.losses.reverse_kl import ReverseKL

    weighted = [Weighted(rollout, np.ones(len(rollout), np.float32)) for rollout in rollouts]
    lengths = sorted(w.length for w in weighted)
    still = Optimisation(learning_rate=1e-30, weight_decay=0, warmup_steps=0, zero_stage=args.zero_stage)
    student = Student(pair.student, pair, dtype=torch.float32)
    engine = TrainEngine(student, still, ReverseKL(name="reverse_kl"), processes, bf16=False)
    return {
        "what": "response tokens trained a second by micro-batches of sequences and of tokens, and the ratio of both",
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "processes": processes.world,
        "zero_stage": args.zero_stage,
        "lengths": {
            "from": "journal of the micro pair" if args.journal else f"log-normal, 1/{SCALE} of the full scale",
            "sequences": len(lengths),
            "tokens": {name: int(np.quantile(lengths, q)) for name, q in (("median", 0.5), ("p90", 0.9), ("max", 1))},
        },
        "cases": [compare(engine, processes, weighted, size, args.repeats) for size in args.sizes],
    }


def compare(
    engine: TrainEngine, processes: Processes, weighted: Sequence[Weighted], size: int, repeats: int
) -> dict[str, Any]:
    """Both ways in turn, with forwards that are at most as large as each other's."""
    limit = size * max(w.length for w in weighted)
    every = {
        "sequences": shard_rollouts(weighted, processes.world, size),
        "tokens": shard_by_tokens(weighted, processes.world, limit),
    }
    shards = {way: shards[processes.rank] for way, shards in every.items()}
    responses = sum(len(w.rollout) for w in weighted)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):  # the first warms up
        updates = {}
        for way in WAYS:
            started = time.perf_counter()
            updates[way] = engine.update([collate(part) for part in shards[way]], responses, 0)
            if repeat:
                rates[way].append(responses / (time.perf_counter() - started))
        for name in ("loss", "grad_norm"):
            one, other = (getattr(update, name) for update in updates.values())
            assert abs(one / other - 1) < AGREEMENT, f"not the same update: {name} {one} and {other}"
    ratios = [tokens / sequences for sequences, tokens in zip(*rates.values(), strict=True)]
    if processes.leads:
        progress(f"{size} sequences or {limit} tokens: ratio {statistics.median(ratios):.2f}")
    return {
        "largest_forward": {"sequences": size, "tokens": limit},
        "micro_batches": {way: len(shard) for way, shard in shards.items()},
        "padding": {way: update.padding for way, update in updates.items()},
        "tokens_per_s": {way: statistics.median(values) for way, values in rates.items()},
        "ratio": statistics.median(ratios),
        "all": rates,
    }


def full_scale(processes: int, size: int = 2, sequences: int = 256) -> dict[str, Any]:
    """How a step of the paper's size is dealt: two sequences, or as many tokens as the longest two have."""
    lengths = sorted((prompt + response for prompt, response in log_normal(sequences)), reverse=True)
    by_size = [
        [own[first : first + size] for first in range(0, len(own), size)]
        for own in (lengths[process::processes] for process in range(processes))
    ]
    dealt = deal_by_tokens(lengths, processes, size * (LONGEST + 1024))
    by_tokens = [[[lengths[i] for i in group] for group in shard] for shard in dealt]
    return {"processes": processes, "sequences": described(by_size), "tokens": described(by_tokens)}


def described(shards: Sequence[Sequence[Sequence[int]]]) -> dict[str, float]:
    """Micro-batches of a process, padding, and how much more than the average process the slowest computes: at the end
    of a step, and where it is waited for after every micro-batch, as ZeRO-3 does.
    """
    computed = [[len(group) * max(group, default=0) for group in shard] for shard in shards]
    total = sum(map(sum, computed))
    return {
        "micro_batches": len(computed[0]),
        "padding": 1 - sum(length for shard in shards for group in shard for length in group) / total,
        "slowest": max(map(sum, computed)) * len(computed) / total,
        "slowest_in_step": sum(map(max, zip(*computed, strict=True))) * len(computed) / total,
    }


if __name__ == "__main__":
    main()
