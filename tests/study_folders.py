"""Folders of studies as their runs leave them, made up without a training."""

from __future__ import annotations

import json

import numpy as np

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

    ``outside`` further ids are in no support.
    """
    random = np.random.default_rng([seed, step])
    keys = [RolloutKey(step, step * prompts + i, j) for i in range(prompts) for j in range(samples)]
    with StepJournal(journal_path(run_folder, step)) as journal:
        for key in keys:
            journal.append(_rollout(key, random, length, 16 + outside, scale, epsilon))
    return journal_path(run_folder, step)


def _rollout(key, random, length, ids, scale, epsilon):
    logits = random.normal(0, 2, (length, ids))
    p, q = _normal(logits), _normal(logits + random.normal(0, scale, (length, ids)))
    beta = _largest_beta(p, q, epsilon)
    mu = np.where(beta > 0, _normal((1 - beta) * p + beta * q), p)
    drawn = np.array([random.choice(ids, p=np.exp(row)) for row in mu])
    said = [law[np.arange(length), drawn] for law in (mu, p, q)]
    said += [beta[:, 0], _kl(mu, p), *(-(np.exp(law) * law).sum(axis=1) for law in (p, q))]
    tokens = TokenStatistics.of(column.astype(np.float32) for column in said)
    top = np.argsort(-p, axis=1)[:, :16]
    laws = (np.take_along_axis(law, top, axis=1).astype(np.float32) for law in (p, q))
    prompt = np.array([5 + key.prompt, 6, 7], np.int32)
    return Rollout(
        key, "run/step-0", "stop", prompt, drawn.astype(np.int32), tokens, Support(top.astype(np.int32), *laws)
    )


def _largest_beta(p, q, epsilon):
    """By bisection, all tokens at once; [tokens, 1]."""
    low, high = np.zeros((len(p), 1)), np.ones((len(p), 1))
    if epsilon == 0:
        return low
    for _ in range(50):
        middle = (low + high) / 2
        fits = _kl(_normal((1 - middle) * p + middle * q), p)[:, None] <= epsilon
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(_kl(q, p)[:, None] <= epsilon, 1.0, low)


def _normal(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _kl(mu, p):
    return np.maximum((np.exp(mu) * (mu - p)).sum(axis=-1), 0.0)
