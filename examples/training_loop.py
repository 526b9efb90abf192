"""The training loop on one page, from the library's parts: publish, collect, update.

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
from trainer.learner.learner import Learner
from trainer.learner.processes import Processes
from trainer.run.leader import Leader
from trainer.run.phases import Phases
from trainer.run.rollout_source import RolloutSource
from trainer.run.weight_sync import WeightSync

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "examples/micro/trb.yaml", metavar="FILE")
    parser.add_argument("--problems", type=Path, required=True, metavar="FILE", help="JSON lines: question, answer")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the file")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        overrides = [f"folder={folder}", f"data.path={arguments.problems}", f"steps={arguments.steps}"]
        config = load_config(arguments.config, [*overrides, "evaluation.benchmarks=[]", *arguments.overrides])

        pair = Pair.load(config.models.student, config.models.teacher)
        learner = Learner(config, pair, processes, note=print)
        with Leader(config, pair, note=print) as leader:
            phases = Phases()
            weight_sync = WeightSync(learner, processes, leader, phases)
            rollout_source = RolloutSource(config, weight_sync, processes, leader, phases)
            for k in range(config.steps):
                rollout_source.begin(k)  # the servers hold the student after k updates
                rollouts = rollout_source.collect(k)  # at the budget of this step
                update = learner.update(rollouts, k)
                blend, _ = config.sampling(k)
                print(
                    f"step {k + 1}: epsilon {blend.epsilon:.3f}, loss {update.loss:.3f}, reverse KL "
                    f"{update.metrics['reverse_kl']:.3f} nats a token, drift {update.drift_mean:.1e}"
                )


if __name__ == "__main__":
    main()
