"""Folders of studies as their runs leave them, made up without a training."""

from __future__ import annotations

import json

import numpy as np

from sglang_trb.blend.reference import blend, entropy, log_softmax
from sglang_trb.wire.record import Support, TokenStatistics
from trainer.records import METRICS_FILE, MetricsLog, ProblemScores, fields, write_scores, write_settings
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.rollout import Rollout, RolloutKey
from trainer.run.rollout_source import journal_path

STEPS = (0, 2, 4)
SETTINGS = {
    "name": "x",
    "models": {"student": "s", "teacher": "t", "dtype": "float32"},
    "data": {"path": "problems.jsonl"},
    "loss": {"name": "reverse_kl", "normalisation": "surrogate"},
    "server": {"urls": ["http://127.0.0.1:1"]},
    "optimisation": {"learning_rate": 0.001},
    "steps": 4,
}


def write_run(
    study, name, chance, seed, first_step=0, problems=64, digest="digest", benchmarks=("sums", "words"), **settings
):
    folder = study / "runs" / name
    log = MetricsLog(folder / METRICS_FILE)
    write_settings(folder, SETTINGS | {"steps": 4 - first_step} | settings)
    generator = np.random.default_rng([seed, round(1000 * chance)])
    for step in range(5 - first_step):
        row = {"step": step, fields.TEACHER_ENTROPY: 1 / (1 + step), fields.TIME.of("train"): 2.0}
        row |= {fields.TEACHER_LOGPROB: -1.0 - step / 10, fields.SEPARATION: 0.6, fields.REWARD: chance}
        row |= {fields.EPSILON: 0.1, fields.RESPONSE_LENGTH: 10.0, fields.SUM_KL: 0.5, fields.LOG_RATIO_KL: 0.6}
        if step + first_step in STEPS:
            for benchmark in benchmarks:
                right = generator.binomial(1, chance * (step + first_step) / 4, problems)
                row[fields.PASS_AT_1.of(benchmark)] = float(right.mean())
                scores = ProblemScores(
                    benchmark=benchmark, step=step, problems=digest, right=right.tolist(), graded=[1] * problems
                )
                write_scores(folder, scores)
        log.append(row)
    (study / "states").mkdir(exist_ok=True)
    (study / "states" / f"{name}.done").write_text("\n")


def write_study(folder, members):
    record = [
        {"family": f, "title": t, "setting": s, "first_step": n, "runs": {str(i): name for i, name in enumerate(runs)}}
        for f, t, s, n, runs in members
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"runs": {}, "members": record, "base": SETTINGS}))


def write_rollouts(run_folder, step, epsilon, prompts=4, length=12, scale=1.0, seed=0, outside=0, samples=1):
    """A journal of what a server that blends would say, for models over 16 ids that differ by ``scale`` nats.

    ``outside`` further ids, far from the top 16 unless the models are flat, are in no support.
    """
    random = np.random.default_rng([seed, step])
    keys = [RolloutKey(step, step * prompts + i, j) for i in range(prompts) for j in range(samples)]
    with StepJournal(journal_path(run_folder, step)) as journal:
        for key in keys:
            rows = [_token(random, epsilon, scale, outside) for _ in range(length)]
            tokens = TokenStatistics.of(
                np.array(column, np.float32) for column in zip(*(r[1] for r in rows), strict=True)
            )
            ids, p, q = (np.stack(column) for column in zip(*(r[2] for r in rows), strict=True))
            support = Support(ids.astype(np.int32), p.astype(np.float32), q.astype(np.float32))
            prompt, drawn = np.array([5 + key.prompt, 6, 7], np.int32), np.array([r[0] for r in rows], np.int32)
            journal.append(Rollout(key, "run/step-0", "stop", prompt, drawn, tokens, support))
    return journal_path(run_folder, step)


def _token(random, epsilon, scale, outside):
    logits = random.normal(0, 2, 16 + outside)
    log_p = log_softmax(logits)
    log_q = log_softmax(logits + random.normal(0, scale, 16 + outside))
    log_mu, beta, divergence = blend(log_p, log_q, epsilon) if epsilon else (log_p, 0.0, 0.0)
    drawn = int(random.choice(len(log_mu), p=np.exp(log_mu)))
    top = np.argsort(-log_p)[:16]
    said = (log_mu[drawn], log_p[drawn], log_q[drawn], beta, divergence, entropy(log_p), entropy(log_q))
    return drawn, said, (top, log_p[top], log_q[top])
