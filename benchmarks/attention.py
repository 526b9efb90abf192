"""Attention on a CPU: this package's ``torch_batched`` against SGLang's ``torch_native``, in one run.

Two servers of one configuration differ in that option alone. Both are up for the whole run and answer the same
requests in turn, so that a disturbance of the machine hits both. Each case is measured several times; the median of the
ratios of neighbours is kept. ``decode`` counts blended tokens per second at a concurrency; ``prefill`` the time of one
prompt's first token, whose tokens no cache holds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests
import torch

from benchmarks.serving import ROOT, cpu_name, progress
from sglang_trb.launch.local_server import serving

BACKENDS = ("torch_native", "torch_batched")
TOKEN_IDS = (3, 40)
"""Of prompts: ordinary tokens of every vocabulary."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "server_configs" / "cpu-micro.yaml")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=60, help="new tokens per request (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=24, help="tokens of a prompt, at most (default %(default)s)")
    parser.add_argument("--prefill", type=int, default=0, help="measure one prompt of so many tokens instead")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per backend (default %(default)s)")
    parser.add_argument("--option", nargs="*", default=[], help="more of `trb serve`, such as context-length=2048")
    parser.add_argument("--json", type=Path, help="where the result goes too")
    args = parser.parse_args()
    result = measure(args)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    more = [word for option in args.option for word in (f"--{option.split('=')[0]}", option.split("=")[1])]
    rates: dict[str, list[float]] = {name: [] for name in BACKENDS}
    with ExitStack() as stack:
        servers = {}
        for name in BACKENDS:
            options = ["--attention-backend", name, *more]
            log = ROOT / "out" / f"bench-{name}.log"
            servers[name] = stack.enter_context(serving(args.config, options, log=log, report=progress))
        for repeat in range(args.repeats + 1):  # the first warms up
            for name, address in servers.items():
                rate = prefill(address, args.prefill, repeat) if args.prefill else decode(address, args)
                if repeat:
                    rates[name].append(rate)
                    progress(f"{repeat}/{args.repeats}  {name}: {rate:.1f} tokens/s")
    ratios = [ours / theirs for theirs, ours in zip(*rates.values(), strict=True)]
    return {
        "what": "tokens per second of each attention backend, and the ratio of torch_batched to torch_native",
        "config": args.config.name,
        "case": {"prefill": args.prefill} if args.prefill else {"concurrency": args.concurrency, "tokens": args.tokens},
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "all": rates,
        "ratio": statistics.median(ratios),
    }


def decode(address: str, args: argparse.Namespace) -> float:
    """Tokens per second of blended requests whose prompts and answers differ in length."""

    def one(i: int) -> int:
        draw = random.Random(i)
        prompt = [draw.randrange(*TOKEN_IDS) for _ in range(draw.randint(args.prompt // 2, args.prompt))]
        tokens = draw.randint(args.tokens // 2, args.tokens)
        return answer(address, prompt, {"max_new_tokens": tokens, "custom_params": {"trb_epsilon": 0.05}})

    started = time.perf_counter()
    with ThreadPoolExecutor(args.concurrency) as pool:
        tokens = sum(pool.map(one, range(args.concurrency)))
    return tokens / (time.perf_counter() - started)


def prefill(address: str, length: int, seed: int) -> float:
    """Prompt tokens per second of one prompt that was not seen before."""
    draw = random.Random(f"{address} {seed}")
    prompt = [draw.randrange(*TOKEN_IDS) for _ in range(length)]
    started = time.perf_counter()
    answer(address, prompt, {"max_new_tokens": 1, "custom_params": {"trb_epsilon": 0.05}})
    return length / (time.perf_counter() - started)


def answer(address: str, prompt: list[int], sampling: dict[str, Any]) -> int:
    body = {"input_ids": prompt, "sampling_params": {"ignore_eos": True, "temperature": 1.0, **sampling}}
    response = requests.post(f"{address}/generate", json=body, timeout=600)
    response.raise_for_status()
    return response.json()["meta_info"]["completion_tokens"]


if __name__ == "__main__":
    main()
