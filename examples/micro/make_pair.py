"""Train a micro pair from scratch: one teacher and two students of a task in task.py, in minutes on two cores.

    python -m examples.micro.make_pair --out .cache/micro
    python -m examples.micro.make_pair --task rewriting --out .cache/rewriting

    teacher/      1.28 M parameters, solves nearly everything, stops with <|im_end|>
    student/      0.34 M parameters; it can do the steps, but most of its answers are badly written (habits.py) and a
                  step in eight is wrong; stops with <|endoftext|>
    informative/  the student after further training on bad habits: nearly all of its answers start off the teacher's
                  path and most never stop

Each is an ordinary Qwen3 checkpoint; all share one tokenizer. What this leaves out: a validation set (training problems
hardly repeat), and restarting where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from examples.micro.checkpoints import (
    ENDOFTEXT,
    IM_END,
    PAD,
    Shape,
    new_model,
    tokenizer_with_stop,
    write_checkpoint,
)
from examples.micro.habits import Habits
from examples.micro.problems import MAX_NEW_TOKENS, Problem, problems, solved
from examples.micro.task import DEFAULT_TASK, TASKS
from trainer.atomic import new_folder

MADE = {"arithmetic": Path(__file__).parent / "pair", "rewriting": Path(__file__).parent / "rewriting_pair"}
"""Where the finished pair of each task lies."""
RECORD = "pair.json"
BATCH, WARMUP_STEPS, CLIP_NORM, IGNORED = 64, 50, 1.0, -100
EVALUATION_PROBLEMS = 512


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        shape: of the network.
        stop: the token that ends its answers.
        habits: the answers that it is trained on.
        steps: optimiser steps of BATCH problems.
        learning_rate: the highest; linear warm-up, then a cosine to 0.
        pass_at_1: range in which the outcome must lie, else the pair is not written.
        start_from: name of the model whose weights it starts with; None: random ones.
    """

    shape: Shape
    stop: str
    habits: Habits
    steps: int
    learning_rate: float
    pass_at_1: tuple[float, float]
    start_from: str | None = None


LARGE = Shape(hidden=160, layers=4, heads=5, intermediate=448)
SMALL = Shape(hidden=96, layers=3, heads=3, intermediate=256)
WEAK = Habits(0.40, 0.30, 0.15, 0.15, wrong_step=0.12)
WEAKER = Habits(0.15, 0.35, 0.22, 0.28, wrong_step=0.12)
RECIPES = {
    "arithmetic": {
        "teacher": Recipe(LARGE, IM_END, Habits(), 1000, 3e-3, pass_at_1=(0.9, 1.0)),
        "student": Recipe(SMALL, ENDOFTEXT, WEAK, 1500, 3e-3, pass_at_1=(0.1, 0.4)),
        "informative": Recipe(SMALL, ENDOFTEXT, WEAKER, 120, 4e-4, pass_at_1=(0.05, 0.2), start_from="student"),
    },
    "rewriting": {
        "teacher": Recipe(LARGE, IM_END, Habits(), 1000, 3e-3, pass_at_1=(0.97, 1.0)),
        "student": Recipe(SMALL, ENDOFTEXT, WEAK, 1500, 3e-3, pass_at_1=(0.1, 0.4)),
        "informative": Recipe(SMALL, ENDOFTEXT, WEAKER, 120, 4e-4, pass_at_1=(0.05, 0.2), start_from="student"),
    },
}
"""By task, then by model; of a pair they are made in this order."""


class NotAsPromised(RuntimeError):
    """A trained model's pass@1 lies outside its recipe's range."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    try:
        make_pair(arguments.task, arguments.out or MADE[arguments.task], arguments.seed)
    except (FileExistsError, NotAsPromised, OSError) as error:
        print(f"make_pair: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_pair: stopped; nothing was left behind", file=sys.stderr)
        return 1
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.micro.make_pair",
        description="Train a micro pair: a teacher that solves the task, a student with bad habits, and "
        "'informative', the same student with worse ones.",
        epilog="Takes about seven minutes on two cores. The pair appears whole or not at all. The same seed gives the "
        "same problems; the weights agree to rounding only, which depends on the processor and on --threads.",
    )
    parser.add_argument("--task", choices=TASKS, default=DEFAULT_TASK, help=f"which (default: {DEFAULT_TASK})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and problems (default: 0)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of the processor (default: 2)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="gets teacher/, student/ and informative/ (default: where the finished pair lies, in examples/micro)",
    )
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"argument --threads: got {arguments.threads}; allowed: 1 or more")
    if arguments.seed < 0:
        parser.error(f"argument --seed: got {arguments.seed}; allowed: 0 or more")
    return arguments


def make_pair(task: str, out: Path, seed: int = 0) -> None:
    """Train every model of a task's recipes in order and write it to ``out/NAME``, unless ``out`` is there already.

    Raises:
        FileExistsError: ``out`` holds something else.
        NotAsPromised: a model came out too good or too bad; nothing is written.
    """
    console = Console()
    if out.exists():
        made = _made(out)
        if made != (task, seed):
            raise FileExistsError(
                f"--out: {out} holds {'no pair' if made is None else f'the {made[0]} pair of seed {made[1]}'}; "
                f"allowed: a folder that is not there, or the {task} pair of seed {seed}"
            )
        console.print(f"the pair is in {out} already (seed {seed})")
        return
    with new_folder(out) as folder:
        record = {"task": task, "seed": seed, "pass_at_1": _train_all(folder, task, seed, console)}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(f"the pair is in {out}")


def _made(folder: Path) -> tuple[str, int] | None:
    """Task and seed of the pair in a folder, if there is one."""
    if not (folder / RECORD).exists():
        return None
    record = json.loads((folder / RECORD).read_text())
    return record["task"], record["seed"]


def _train_all(folder: Path, task: str, seed: int, console: Console) -> dict[str, float]:
    """Train, write and measure each model as it will be loaded; pass@1 by name."""
    recipes = RECIPES[task]
    models: dict[str, Qwen3ForCausalLM] = {}
    scores = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bars = {name: progress.add_task(name, total=recipe.steps, loss="-") for name, recipe in recipes.items()}
        for index, (name, recipe) in enumerate(recipes.items()):
            models[name] = new_model(recipe.shape, recipe.stop, seed=seed + index)
            if recipe.start_from is not None:
                models[name].load_state_dict(models[recipe.start_from].state_dict())

            def show(loss: float, bar=bars[name]) -> None:
                progress.update(bar, advance=1, loss=f"{loss:.3f}")

            train(models[name], TASKS[task], recipe, seed * len(recipes) + index, show)
            write_checkpoint(folder / name, models[name], recipe.shape, recipe.stop)
            scores[name] = measure(folder / name, problems(TASKS[task], "eval", EVALUATION_PROBLEMS, seed), seed)
            progress.console.print(f"{name}: pass@1 {scores[name]:.3f} on {EVALUATION_PROBLEMS} evaluation problems")
            lowest, highest = recipe.pass_at_1
            if not lowest <= scores[name] <= highest:
                raise NotAsPromised(
                    f"{name}: got pass@1 {scores[name]:.3f}; allowed: {lowest} to {highest}; try another --seed"
                )
    return scores


def train(
    model: Qwen3ForCausalLM, task: type[Problem], recipe: Recipe, seed: int, show: Callable[[float], None]
) -> None:
    """AdamW on the answers of the recipe's habits to training problems; ``show`` gets each step's loss (nats)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, recipe.steps))
    chosen, generator = problems(task, "train", recipe.steps * BATCH, seed), random.Random(seed)
    model.train()
    for first in range(0, len(chosen), BATCH):
        ids_BT, labels_BT = batch(chosen[first : first + BATCH], recipe, generator)
        logits_BTV = model(input_ids=ids_BT).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        scheduler.step()
        show(loss.item())


def _rate_factor(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)))


def batch(chosen: list[Problem], recipe: Recipe, generator: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both int64 [B, T], padded on the right; only answers, cut at the budget, have labels."""
    tokenizer = tokenizer_with_stop(recipe.stop)
    prompts = tokenizer([p.question for p in chosen])["input_ids"]
    answers = tokenizer([recipe.habits.answer(p, generator) + recipe.stop for p in chosen])["input_ids"]
    rows = [(prompt, answer[:MAX_NEW_TOKENS]) for prompt, answer in zip(prompts, answers, strict=True)]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids_BT = torch.full((len(rows), length), tokenizer.convert_tokens_to_ids(PAD))
    labels_BT = torch.full((len(rows), length), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids_BT[row, :end] = torch.tensor(prompt + answer)
        labels_BT[row, len(prompt) : end] = torch.tensor(answer)
    return ids_BT, labels_BT


def measure(checkpoint: Path, chosen: list[Problem], seed: int) -> float:
    """pass@1 of one sampled answer to each problem at temperature 1; one core gives about 100 answers a second."""
    answers = respond(checkpoint, chosen, seed)
    return sum(solved(text, p.answer) for text, p in zip(answers, chosen, strict=True)) / len(chosen)


@torch.no_grad()
def respond(checkpoint: Path, chosen: list[Problem], seed: int | None) -> list[str]:
    """One response to each problem, without its stop token: sampled at temperature 1, or greedy where seed is None."""
    model = Qwen3ForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = tokenizer_with_stop(ENDOFTEXT)
    prompts_BT = torch.tensor(tokenizer([p.question for p in chosen])["input_ids"])  # all questions have one length
    policy = {"do_sample": False} if seed is None else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        answered_BT = model.generate(prompts_BT, max_new_tokens=MAX_NEW_TOKENS, **policy)
    return tokenizer.batch_decode(answered_BT[:, prompts_BT.shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    sys.exit(main())
