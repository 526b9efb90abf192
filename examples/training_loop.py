"""The training loop on one page, from the library's parts: collect, update, push.

    python -m examples.micro.task --split train --count 4096 --out .cache/train.jsonl
    python examples/training_loop.py --problems .cache/train.jsonl --steps 5

What it leaves out, and `trb train` has: resuming, evaluation, records, several processes. Its folder is temporary.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from sglang_trb.pair.pair import Pair
from trainer.config.file import load_config
from trainer.learner.batches import (  # before torch: trainer/environment.py
    Weighted,
    collate,
    deal,
    micro_batches_per_process,
)
from trainer.learner.engine import TrainEngine
from trainer.learner.processes import Processes
from trainer.learner.student import Student
from trainer.run.leader import Leader

# isort: split
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "examples/micro/trb.yaml", metavar="FILE")
    parser.add_argument("--problems", type=Path, required=True, metavar="FILE", help="JSON lines: question, answer")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the file")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"folder={folder}", f"data.path={arguments.problems}", f"steps={arguments.steps}"]
        config = load_config(arguments.config, [*overrides, "evaluation.benchmarks=[]", *arguments.overrides])

        processes = Processes()
        pair = Pair.load(config.models.student, config.models.teacher)
        student = Student(config.models.student, pair, dtype=torch.float32)
        settings = config.optimisation
        sequences = config.rollouts.prompts_per_step * config.rollouts.samples_per_prompt
        count = micro_batches_per_process(sequences, processes.world, settings.micro_batch_size)
        engine = TrainEngine(student, settings, config.loss, processes, count, bf16=False)

        with Leader(config, pair, note=print, on_rollout=lambda done, wanted, tokens: None) as leader:
            for step in range(config.steps):
                leader.serve(engine.weights(), step)  # the servers hold the student after `step` updates
                rollouts = leader.collect(step)  # drawn at the budget of this step
                weighted = [Weighted(rollout, np.ones(len(rollout), np.float32)) for rollout in rollouts]
                (hand,) = deal(weighted, processes.world, settings.micro_batch_size, count, config.loss.aggregation)
                batches = [collate(part, settings.micro_batch_size) for part in hand]
                update = engine.update(batches, sum(len(rollout) for rollout in rollouts), step)
                blend, _ = config.sampling(step)
                print(
                    f"step {step + 1}: epsilon {blend.epsilon:.3f}, loss {update.loss:.3f}, reverse KL "
                    f"{update.metrics['reverse_kl']:.3f} nats a token, drift {update.drift_mean:.1e}"
                )
        processes.leave()


if __name__ == "__main__":
    main()
