"""Folders of studies as their runs leave them, made up without a training."""

from __future__ import annotations

import json

import numpy as np

from trainer.records import METRICS_FILE, MetricsLog, ProblemScores, fields, write_scores, write_settings

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
