"""The trainer's update against a plain transformers loop on the same rollouts, in one run.

Both run in processes of their own, in turn, on random weights of Qwen3's architecture: ``ours`` is the engine of
`trb train` (DeepSpeed, log-probabilities a chunk of positions at a time), ``plain`` is what one writes in an afternoon:
the model's logits of every position, log_softmax, gather, backward, AdamW. The losses of both must agree. The
vocabulary is Qwen3's, the layers are few and narrow: what differs between the two is the output head, and here it is
most of the work. Peak memory is the process's peak resident set over what it was before the first update.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_trb.blend import StopAlignment
from sglang_trb.wire.record import SUPPORT_SIZE, Support, TokenStatistics
from trainer.learner.batches import Weighted, collate, shard_rollouts
from trainer.rollouts.rollout import Rollout, RolloutKey

ROOT = Path(__file__).resolve().parent.parent
LEARNING_RATE = 1e-3
AGREEMENT = 1e-4
"""Largest relative difference of the two loops' losses in float32."""


def main() -> None:
    args = parse_arguments()
    if args.case is not None:
        print(json.dumps(run_case(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), args)
        args.model = folder
        results: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
        for repeat in range(args.repeats):
            for case, measured in results.items():
                measured.append(in_own_process(case, args))
                progress(f"{repeat + 1}/{args.repeats}  {case}: {measured[-1]['tokens_per_s']:.0f} tokens/s")
    result = summary(args, results)
    print(json.dumps({key: result[key] for key in ("tokens_per_s", "peak_mib", "ratios")}, indent=2))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {args.json}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=8, help="of a step (default %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences of a forward (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens (default %(default)s)")
    parser.add_argument("--response", type=int, default=448, help="tokens (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="timed, after one that is not (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "training-cpu.json")
    return parser.parse_args()


def make_model(folder: Path, args: argparse.Namespace) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=args.hidden // 4,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def in_own_process(case: str, args: argparse.Namespace) -> dict[str, Any]:
    options = ["vocab", "hidden", "layers", "rollouts", "micro_batch", "prompt", "response", "steps", "model", "device"]
    command = [sys.executable, __file__, "--case", case]
    for option in options:
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_case(args: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    rollouts = [make_rollout(rng, i, args.vocab, args.prompt, args.response) for i in range(args.rollouts)]
    make = {"plain": plain_loop, "ours": our_loop}[args.case]
    step = make(args, rollouts)
    before = peak_mib(args.device)
    losses = [step(0)]
    started = time.perf_counter()
    losses += [step(k) for k in range(1, args.steps + 1)]
    if args.device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    tokens = args.steps * args.rollouts * args.response
    return {"tokens_per_s": tokens / seconds, "peak_mib": peak_mib(args.device) - before, "losses": losses}


def make_rollout(rng: np.random.Generator, number: int, vocab: int, prompt: int, response: int) -> Rollout:
    """Of random tokens, so many of prompt and response."""
    shape = (response, SUPPORT_SIZE)
    ranks = np.arange(SUPPORT_SIZE, dtype=np.int32)  # added to sorted ids, makes them different

    def log_probs() -> np.ndarray:
        """Of 16 ids that share most of the mass."""
        raw = rng.standard_normal(shape).astype(np.float32)
        return raw - np.log(np.exp(raw).sum(axis=1, keepdims=True)) - np.float32(0.05)

    return Rollout(
        key=RolloutKey(0, number, 0),
        weight_version="run/step-0",
        finish="length",
        prompt_ids=rng.integers(0, vocab, prompt, dtype=np.int32),
        token_ids_T=rng.integers(0, vocab, response, dtype=np.int32),
        tokens=TokenStatistics.of(np.zeros(response, np.float32) for _ in TokenStatistics.names()),
        support=Support(
            np.sort(rng.integers(0, vocab - SUPPORT_SIZE, shape, dtype=np.int32)) + ranks, log_probs(), log_probs()
        ),
    )


def our_loop(args: argparse.Namespace, rollouts: Sequence[Rollout]) -> Callable[[int], float]:
    from sglang_trb.pair.pair import Pair
    from trainer.config.run import Optimisation
    from trainer.learner.engine import TrainEngine
    from trainer.learner.processes import Processes
    from trainer.learner.student import Student
    from trainer.losses.reverse_kl import ReverseKL

    processes = Processes()
    settings = Optimisation(
        learning_rate=LEARNING_RATE, warmup_steps=0, zero_stage=0, micro_batch_size=args.micro_batch
    )
    pair = Pair(args.model, args.model, args.vocab, StopAlignment((0,), (0,), 0))
    student = Student(args.model, pair, dtype=torch.float32)
    engine = TrainEngine(student, settings, ReverseKL(name="reverse_kl"), processes, bf16=False)
    weighted = [Weighted(rollout, np.ones(len(rollout), np.float32)) for rollout in rollouts]
    tokens = sum(len(rollout) for rollout in rollouts)

    def step(k: int) -> float:
        (shard,) = shard_rollouts(weighted, 1, args.micro_batch)
        return engine.update([collate(part) for part in shard], tokens, k).loss

    return step


def plain_loop(args: argparse.Namespace, rollouts: Sequence[Rollout]) -> Callable[[int], float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    tokens = sum(len(rollout) for rollout in rollouts)

    def step(k: int) -> float:
        total = 0.0
        for first in range(0, len(rollouts), args.micro_batch):
            batch = rollouts[first : first + args.micro_batch]
            ids_BT = torch.from_numpy(np.stack([np.concatenate([r.prompt_ids, r.token_ids_T]) for r in batch])).long()
            support = Support.joined([r.support for r in batch], lambda arrays: torch.from_numpy(np.stack(arrays)))
            support = {name: value.to(args.device) for name, value in support.items()}
            logits_BTV = model(ids_BT.to(args.device)).logits[:, args.prompt - 1 : -1]
            log_probs_BTV = torch.log_softmax(logits_BTV.float(), dim=-1)
            student_BTK = log_probs_BTV.gather(-1, support.ids.long())
            with torch.no_grad():
                weight = torch.softmax(student_BTK, dim=-1)
                advantage = -weight * (student_BTK - support.teacher_logprob)
            ratio = (student_BTK - student_BTK.detach()).exp()
            loss = -(advantage * ratio).sum() / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def peak_mib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summary(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    for ours, plain in zip(results["ours"], results["plain"], strict=True):
        difference = np.abs(np.array(ours["losses"]) / np.array(plain["losses"]) - 1).max()
        assert difference < AGREEMENT, f"the two loops do not train the same: {ours['losses']} {plain['losses']}"
    medians = {
        name: {case: statistics.median(run[name] for run in runs) for case, runs in results.items()}
        for name in ("tokens_per_s", "peak_mib")
    }
    return {
        "what": "response tokens trained a second, and memory over the loaded model; medians of processes run in turn",
        "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "model": {"vocabulary": args.vocab, "hidden": args.hidden, "layers": args.layers, "dtype": "float32"},
        "step": {name: getattr(args, name) for name in ("rollouts", "prompt", "response", "micro_batch")},
        "repeats": args.repeats,
        **medians,
        "ratios": {name: values["ours"] / values["plain"] for name, values in medians.items()},
        "all": results,
    }


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
