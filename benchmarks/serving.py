"""Blended tokens per second against the plain student on the same server settings, in one run.

Starts a server twice from one configuration: once without blending (SGLang's own sampler, no teacher), once as it is.
Both answer the same prompts at the same concurrency; each case is measured several times and the median is kept. What
it leaves out: prefill-heavy loads (prompts are short) and the time to first token.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import torch

from sglang_trb.launch.local_server import serving

ROOT = Path(__file__).resolve().parent.parent
PLAIN = {"plain student": None}
BLENDED: dict[str, dict[str, Any]] = {
    "student rule": {"trb_rule": "student"},
    "epsilon 0.01": {"trb_epsilon": 0.01},
    "epsilon 0.01, support": {"trb_epsilon": 0.01, "trb_return": "support"},
    "skd": {"trb_rule": "skd", "trb_skd_top_k": 15, "trb_skd_temperature": 0.6},
}


def main() -> None:
    args = parse_arguments()
    rates: dict[str, list[float]] = {}
    info: dict[str, Any] = {}
    plain = ["--sampling-backend", "pytorch"]
    for options, cases in ((plain, PLAIN), ([], BLENDED)):
        with serving(args.config, options, log=ROOT / "out" / "bench-server.log", report=progress) as address:
            if cases is BLENDED:
                info = requests.get(f"{address}/trb/info", timeout=60).json()
            measure(address, cases, args, rates)
    result = summary(args, info, rates)
    print_table(result)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {args.json}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "server_configs" / "cpu-smollm2.yaml")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per request (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements per case (default %(default)s)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "serving-cpu.json")
    return parser.parse_args()


def measure(address: str, cases: dict[str, Any], args: argparse.Namespace, rates: dict[str, list[float]]) -> None:
    """Interleave the cases, so that a disturbance of the machine hits all of them."""
    load(address, None, args.concurrency, 4)  # warm-up
    for repeat in range(args.repeats):
        for name, blend in cases.items():
            started = time.perf_counter()
            tokens = load(address, blend, args.concurrency, args.tokens)
            rates.setdefault(name, []).append(tokens / (time.perf_counter() - started))
            progress(f"{repeat + 1}/{args.repeats}  {name}: {rates[name][-1]:.1f} tokens/s")


def load(address: str, blend: dict[str, Any] | None, concurrency: int, tokens: int) -> int:
    """Send ``concurrency`` requests at once; returns the tokens generated."""

    def one(i: int) -> int:
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 1.0}
        if blend is not None:
            sampling["custom_params"] = blend
        body = {"text": f"{i + 3} plus {2 * i + 5} is", "sampling_params": sampling}
        response = requests.post(f"{address}/generate", json=body, timeout=600)
        response.raise_for_status()
        return response.json()["meta_info"]["completion_tokens"]

    with ThreadPoolExecutor(concurrency) as pool:
        return sum(pool.map(one, range(concurrency)))


def summary(args: argparse.Namespace, info: dict[str, Any], rates: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "what": "tokens per second, median of repeats; ratio to the plain student on the same settings",
        "config": args.config.name,
        "concurrency": args.concurrency,
        "tokens_per_request": args.tokens,
        "repeats": args.repeats,
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "weights_bytes": {side: info["memory"][f"{side}_weight_bytes"] for side in ("student", "teacher")},
        "tokens_per_second": medians,
        "all": rates,
        "ratio_to_plain_student": {name: value / medians["plain student"] for name, value in medians.items()},
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{'case':24} {'tokens/s':>9} {'ratio':>7}")
    for name, value in result["tokens_per_second"].items():
        print(f"{name:24} {value:9.1f} {result['ratio_to_plain_student'][name]:7.2f}")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
