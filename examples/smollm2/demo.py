"""What trust-region blending does, seen on a real pair: `make demo`.

Makes the SmolLM2 pair (teacher, and a student damaged by noise) if it is not there, serves both with
`trb serve --config server_configs/cpu-smollm2.yaml`, and asks the same questions under five policies: the student alone
(ε = 0), three KL budgets, the teacher alone. Seeds are the same in each. Two kinds of question:

* word problems of GSM8K: read how the student drifts, and how the blend pulls it back;
* sums of two digits, after two worked examples: short enough to count how many come out right.

Results: tables here, every token's numbers in out/demo.html (open it) and out/demo.jsonl.
What this leaves out: training. The student stays as it is; compare docs and `trb` for the rest of the pipeline.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import make_pair
import requests
from rich.console import Console
from rich.progress import track
from rich.text import Text
from tokenizers import Tokenizer

from sglang_trb.cli.show import prompt_table, totals_table
from sglang_trb.display.completions import TracedCompletion, token_pieces
from sglang_trb.display.page import page
from sglang_trb.errors import TrbError
from sglang_trb.launch.local_server import serving

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "server_configs/cpu-smollm2.yaml"
PROBLEMS = HERE.parent / "data/gsm8k_excerpt.jsonl"

POLICIES: dict[str, dict[str, Any]] = {
    "ε = 0 (student)": {"trb_epsilon": 0.0},
    "ε = 0.01": {"trb_epsilon": 0.01},
    "ε = 0.1": {"trb_epsilon": 0.1},
    "ε = 1": {"trb_epsilon": 1.0},
    "teacher": {"trb_rule": "teacher"},
}
CONCURRENT = 32
WORKED_EXAMPLES = [("What is 2 + 3?", "2 + 3 = 5"), ("What is 7 + 4?", "7 + 4 = 11")]


@dataclass(frozen=True)
class Question:
    """``answer`` is what a sum comes to; None where nobody judges."""

    text: str
    messages: list[dict[str, str]]
    max_tokens: int
    answer: int | None = None


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    console = Console()
    started = time.monotonic()
    try:
        make_pair.make_pair()
        questions = word_problems(arguments.max_tokens) + sums(arguments.sums)
        with serving(CONFIG, log=arguments.out / "demo-server.log") as address:
            drawn, seconds = draw(address, questions, arguments, console)
    except (TrbError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 1
    show(drawn, seconds, console)
    write(drawn, arguments.out)
    console.print(f"\nThe page: [bold]{arguments.out}/demo.html[/]  ({time.monotonic() - started:.0f} s in all)")
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--max-tokens", type=int, default=80, metavar="N", help="per word problem (default: 80)")
    parser.add_argument(
        "--sums", type=int, default=32, metavar="N", help="how many sums to ask (default: 32, at most 64)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="default: 0.7, so that the teacher reads well"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="default: %(default)s")
    return parser.parse_args(argv)


def word_problems(max_tokens: int) -> list[Question]:
    lines = PROBLEMS.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["question"] for line in lines]
    return [Question(text, [{"role": "user", "content": text}], max_tokens) for text in texts]


def sums(count: int) -> list[Question]:
    pairs = [(a, b) for a in range(2, 10) for b in range(2, 10)]
    random.Random(0).shuffle(pairs)
    shown = [
        {"role": role, "content": content}
        for example in WORKED_EXAMPLES
        for role, content in zip(("user", "assistant"), example, strict=True)
    ]
    asked = [(f"What is {a} + {b}?", a + b) for a, b in pairs[:count]]
    return [Question(text, [*shown, {"role": "user", "content": text}], 12, answer) for text, answer in asked]


def draw(
    address: str, questions: list[Question], arguments: argparse.Namespace, console: Console
) -> tuple[list[TracedCompletion], float]:
    """Send every question under every policy, concurrently; returns completions in order, and the seconds it took."""
    tokenizer = Tokenizer.from_file(str(make_pair.DEFAULT_OUT / "student/tokenizer.json"))
    jobs = [(question, label) for question in questions for label in POLICIES]
    started = time.monotonic()
    pool = ThreadPoolExecutor(CONCURRENT)
    try:
        futures = [pool.submit(ask, address, *job, tokenizer, arguments) for job in jobs]
        for future in track(as_completed(futures), f"drawing {len(jobs)} rollouts", len(jobs), console=console):
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C the server ends, and with it what still runs
    return [future.result() for future in futures], time.monotonic() - started


def ask(
    address: str, question: Question, label: str, tokenizer: Tokenizer, arguments: argparse.Namespace
) -> TracedCompletion:
    """One request to the OpenAI route; `custom_params` carries the policy."""
    body = {
        "model": "student",
        "messages": question.messages,
        "max_tokens": question.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "return_token_ids": True,
        "custom_params": POLICIES[label] | {"trb_return": "tokens"},
    }
    response = requests.post(f"{address}/v1/chat/completions", json=body, timeout=600)
    response.raise_for_status()
    choice = response.json()["choices"][0]
    text = choice["message"]["content"]
    judged = {} if question.answer is None else {"correct": last_number(text) == question.answer}
    return TracedCompletion.from_wire(
        choice["trb"],
        prompt=question.text,
        label=label,
        text=text,
        pieces=token_pieces(tokenizer, choice["response_token_ids"]),
        **judged,
    )


def last_number(text: str) -> int | None:
    """The answer to a sum: the last number of the first line."""
    numbers = re.findall(r"\d+", text.strip().split("\n")[0])
    return int(numbers[-1]) if numbers else None


def show(completions: list[TracedCompletion], seconds: float, console: Console) -> None:
    problems = [c for c in completions if "correct" not in c.summary]
    for prompt in dict.fromkeys(c.prompt for c in problems):
        console.print()
        console.print(prompt_table(prompt, [c for c in problems if c.prompt == prompt]))
    console.print()
    console.print(totals_table("Word problems", problems))
    console.print(totals_table("Sums", [c for c in completions if "correct" in c.summary]))
    tokens = sum(len(c.pieces) for c in completions)
    console.print(
        Text(f"{tokens} tokens in {seconds:.0f} s: {tokens / seconds:.0f} tokens/s, each through both models")
    )


def write(completions: list[TracedCompletion], out: Path) -> None:
    note = "Teacher: SmolLM2-135M-Instruct. Student: the same weights with 10% noise. Same seeds under every policy."
    (out / "demo.html").write_text(page(completions, note=note), encoding="utf-8")
    lines = (json.dumps(completion.to_json(), ensure_ascii=False) + "\n" for completion in completions)
    (out / "demo.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
