"""What the statistics that come with a rollout cost: bytes a token, and time on both sides, in one run.

One server, the same requests with each value of ``trb_return``. The server's side is the tokens per second of the whole
batch, as a ratio to ``none``; the client's is the time to parse and check an answer, without waiting for it. The micro
pair is so small that the statistics weigh more here than they would beside any real model.
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

import orjson
import requests
import torch

from sglang_trb.launch.local_server import serving
from sglang_trb.wire.params import BlendParams, Return, Rule
from trainer.rollouts.rollout import RolloutKey, RolloutRequest, parse_rollout
from trainer.run.plan import journal_bytes

ROOT = Path(__file__).resolve().parent.parent
EPSILON = 0.1
FULL = (Return.SUPPORT, Return.SUPPORT_BOTH)


def main() -> None:
    args = parse_arguments()
    measured: dict[str, list[dict[str, float]]] = {mode.value: [] for mode in Return}
    with serving(args.config, log=ROOT / "out" / "bench-server.log", report=progress) as address:
        measure_once(address, Return.NONE, args)
        for repeat in range(args.repeats):
            for mode in Return:
                measured[mode.value].append(measure_once(address, mode, args))
                progress(f"{repeat + 1}/{args.repeats}  {mode.value}: {measured[mode.value][-1]}")
    result = summary(args, measured)
    print(json.dumps(result["by_return"], indent=2))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {args.json}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "server_configs" / "cpu-micro.yaml")
    parser.add_argument("--requests", type=int, default=32, help="in flight at once (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=80, help="new tokens of a request (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per case (default %(default)s)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "payload-cpu.json")
    return parser.parse_args()


def measure_once(address: str, mode: Return, args: argparse.Namespace) -> dict[str, float]:
    blend = BlendParams(Rule.TRUST_REGION, EPSILON, returned=mode)
    prompts = [(5 + i % 7, 6, 7) for i in range(args.requests)]
    requests = [
        RolloutRequest(RolloutKey(0, i, 0), p, blend, 1.0, args.tokens, i, "default") for i, p in enumerate(prompts)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(args.requests) as pool:
        bodies = list(pool.map(lambda request: answer(address, request), requests))
    seconds = time.perf_counter() - started
    tokens = args.requests * args.tokens
    parsing = time.perf_counter()
    for request, body in zip(requests, bodies, strict=True):
        answered = orjson.loads(body)
        if mode is not Return.NONE:
            parse_rollout(request, answered)
    parsing = time.perf_counter() - parsing
    return {
        "tokens_per_s": tokens / seconds,
        "bytes_per_token": sum(map(len, bodies)) / tokens,
        "client_us_per_token": 1e6 * parsing / tokens,
    }


def answer(address: str, request: RolloutRequest) -> bytes:
    body = request.body()
    body["sampling_params"]["ignore_eos"] = True
    response = requests.post(f"{address}/generate", json=body, timeout=600)
    response.raise_for_status()
    return response.content


def summary(args: argparse.Namespace, measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians = {
        mode: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for mode, runs in measured.items()
    }
    for values in medians.values():
        values["tokens_per_s_ratio_to_none"] = values["tokens_per_s"] / medians[Return.NONE.value]["tokens_per_s"]
    return {
        "what": "the HTTP body's bytes, and time, per generated token, for each value of trb_return; medians",
        "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "config": args.config.name,
        "requests": args.requests,
        "tokens_per_request": args.tokens,
        "repeats": args.repeats,
        "journal_bytes_per_token": {mode.value: journal_bytes(mode) for mode in FULL},
        "by_return": medians,
        "all": measured,
    }


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
