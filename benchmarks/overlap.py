"""Steps per minute with ``rollouts.max_staleness`` 0 and 1, in one run.

The micro pair as the demo trains it, and a larger student with answers that come late: a proxy between trainer and
server holds each one back, as a server on other machines would keep the trainer waiting without taking its cores. The
delay is such that a step waits for rollouts about as long as it trains, where overlap can gain most. The runs of a case
take turns on one server; trainer and server have a core each.

    python -m benchmarks.overlap
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import torch
import yaml
from aiohttp import web
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.serving import ROOT, cpu_name, progress
from examples.micro.arithmetic import Arithmetic
from examples.micro.problems import problems, write_problems
from sglang_trb.launch.local_server import free_port, serving
from trainer.records import METRICS_FILE, read_rows

MICRO = ROOT / "examples/micro/pair/student"

CASES = {
    "demo": ["rollouts.prompts_per_step=64", "rollouts.max_new_tokens=72"],
    "held back": [
        "rollouts.prompts_per_step=8",  # many samples of few prompts: little for the server to do
        "rollouts.samples_per_prompt=16",
        "rollouts.max_new_tokens=2",
        "server.max_in_flight=128",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="updates of a run; the first is not counted")
    parser.add_argument("--delay", type=float, default=3.5, help="seconds that the proxy holds an answer back")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind (default %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "overlap-cpu.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"machine": cpu_name(), "steps": args.steps, "cases": measure(args, Path(folder))}
    print(json.dumps(result, indent=2))
    args.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    write_problems(folder / "train.jsonl", problems(Arithmetic, "train", 4096, seed=0))
    found = {}
    log = ROOT / "out" / "bench-overlap.log"
    log.parent.mkdir(exist_ok=True)
    larger = larger_student(folder / "student")
    for case in args.cases:
        delay, student = (0.0, MICRO) if case == "demo" else (args.delay, larger)
        options = ["--model-path", str(student)]
        with serving(ROOT / "server_configs" / "cpu-micro.yaml", options, log=log, report=progress) as address:
            with held_back(address, delay) as url:
                runs: dict[int, list[dict[str, float]]] = {0: [], 1: []}
                for repeat in range(args.repeats):
                    for staleness, rows in runs.items():
                        progress(f"{case}, max_staleness {staleness}, run {repeat + 1} of {args.repeats}")
                        name = f"{case[:4]}-{staleness}-{repeat}"
                        rows.append(train(folder, name, url, student, case, staleness, args))
            found[case] = summary(runs, delay)
    return found


def larger_student(folder: Path) -> Path:
    """A checkpoint of random weights, 8 layers of width 512, under the micro pair's tokenizer."""
    config = AutoConfig.from_pretrained(MICRO)
    config.update({"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "layer_types": None})
    config.update({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64})
    config.layer_types = ["full_attention"] * 8
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for path in MICRO.iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    return folder


def train(
    folder: Path, name: str, url: str, student: Path, case: str, staleness: int, args: argparse.Namespace
) -> dict[str, float]:
    """One run; its steps per minute and how its time was spent, without the first step, which overlaps nothing."""
    config = yaml.safe_load((ROOT / "examples/micro/trb.yaml").read_text())
    config |= {"name": name, "folder": str(folder), "steps": args.steps, "server": {"urls": [url]}}
    config["models"]["student"] = str(student)
    config["optimisation"] |= {"max_drift_warn": 1.0, "max_drift_stop": 10.0}
    config["data"]["path"] = str(folder / "train.jsonl")
    config["evaluation"] = {"every": 0}
    config["checkpoints"] = {"every": args.steps}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    overrides = [*CASES[case], f"rollouts.max_staleness={staleness}"]
    command = [sys.executable, "-m", "sglang_trb.cli.main", "train", "--config", str(path), "--quiet", *overrides]
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a core for the trainer, the other for the server
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    rows = read_rows(folder / name / METRICS_FILE)[1:-1]  # nor the last, whose successor nobody draws
    times = {
        phase: statistics.mean(row.get(f"time/{phase}_s", 0.0) for row in rows)
        for phase in ("rollout", "train", "push")
    }
    step = sum(times.values())
    return {"steps_per_minute": 60 / step, "wall_s": time.monotonic() - started, **times}


def summary(runs: dict[int, list[dict[str, float]]], delay: float) -> dict[str, Any]:
    """Medians over the runs of a case, and the median gain of neighbours."""
    medians = {
        f"max_staleness {staleness}": {name: statistics.median(run[name] for run in rows) for name in rows[0]}
        for staleness, rows in runs.items()
    }
    gains = [one["steps_per_minute"] / zero["steps_per_minute"] for zero, one in zip(runs[0], runs[1], strict=True)]
    return {"delay_s": delay, **medians, "gains": gains, "gain": statistics.median(gains)}


@contextmanager
def held_back(server: str, delay: float) -> Iterator[str]:
    """The address of a proxy of ``server`` that keeps every generated answer for ``delay`` seconds."""
    if not delay:
        yield server
        return
    loop, port = asyncio.new_event_loop(), free_port()

    async def forward(request: web.Request) -> web.Response:
        async with session.request(
            request.method, server + request.path_qs, data=await request.read(), headers=request.headers
        ) as answer:
            body = await answer.read()
        if request.path == "/generate":
            await asyncio.sleep(delay)
        return web.Response(status=answer.status, body=body, content_type=answer.content_type)

    async def start() -> web.AppRunner:
        nonlocal session
        session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(None), connector=aiohttp.TCPConnector(limit=0, force_close=True)
        )
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    session: aiohttp.ClientSession
    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        for end in (session.close(), runner.cleanup()):
            asyncio.run_coroutine_threadsafe(end, loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


if __name__ == "__main__":
    main()
