"""Fig. 8: what vanilla OPD and TRB drew to the same prompts with the same seeds, at the first step that both have.

Deterministic and bounded: the first prompts of that step, the first rollout to each, and so many tokens of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from sglang_trb.display.completions import TracedCompletion, token_pieces
from sglang_trb.display.page import shown
from sglang_trb.wire.params import Rule
from sglang_trb.wire.record import TokenStatistics
from trainer.rollouts.journal import read_step, rollout_keys, steps_kept
from trainer.rollouts.rollout import Rollout
from trainer.run.rollout_source import journal_path
from trainer.study.results import RunResult, StudyResult
from trainer.study.table import BASELINE, Table

PROMPTS, TOKENS, PROMPT_LETTERS = 3, 200, 600
"""At most so many prompts, tokens of a rollout, and letters of a prompt (its last) are shown."""

HEADS = ("prompt", "method", "place", "token", "beta", "kl_nats")
NOT_KEPT = (
    "Rollouts side by side are left out",
    ": no step is on the disk of which vanilla OPD and TRB both have the rollouts, TRB with a budget; "
    "checkpoints.keep_journals keeps them.",
)
_FAMILY = "trb"

Note = tuple[str, str]
"""A loud part, and the rest."""


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """Rollouts to compare.

    Attributes:
        step: k, of both.
        epsilon: TRB's budget there, nats a token.
        completions: cut after `TOKENS`, vanilla's and TRB's to one prompt after the other.
    """

    step: int
    epsilon: float
    completions: Sequence[TracedCompletion]

    def cards(self) -> list[dict[str, Any]]:
        """What the page shows: for each prompt its text and two completions."""
        pairs = zip(self.completions[::2], self.completions[1::2], strict=True)
        return [{"prompt": one.prompt, "completions": [shown(one), shown(other)]} for one, other in pairs]

    def rows(self) -> list[tuple[Any, ...]]:
        """`HEADS` of each token that is shown."""
        return [
            (c.prompt, c.label, place, piece, beta, kl)
            for c in self.completions
            for place, (piece, beta, kl) in enumerate(zip(c.pieces, c.tokens.beta, c.tokens.kl, strict=True))
        ]


@dataclasses.dataclass(frozen=True)
class _Side:
    name: str
    run: RunResult

    def journal(self, step: int) -> Path:
        return journal_path(self.run.folder, step)


def side_by_side(study: StudyResult, table: Table) -> SideBySide | Note:
    """The rollouts, or why there are none.

    TRB is the setting that represents it, where that has a step in common with vanilla of the same seed; else the first
    that has.

    Raises:
        JournalBroken: a journal is damaged.
        SettingsBroken: a run's settings are.
    """
    for vanilla, trb in _pairs(study, table):
        for step in _common_steps(vanilla, trb):
            blend, _ = trb.run.config().sampling(step)
            if blend.rule is Rule.TRUST_REGION and (found := _matched(vanilla, trb, step)):
                return _told(vanilla, trb, step, blend.epsilon, found)
    return NOT_KEPT


def _pairs(study: StudyResult, table: Table) -> Iterator[tuple[_Side, _Side]]:
    representing = [row.member for row in table.rows if row.family == _FAMILY]
    settings = representing + [m for m in study.members if m.family == _FAMILY and m not in representing]
    baselines = {run.seed: _Side(m.name, run) for m in study.members if m.family == BASELINE for run in m.runs}
    for member in settings:
        for run in member.runs:
            if run.seed in baselines:
                yield baselines[run.seed], _Side(member.name, run)


def _common_steps(one: _Side, other: _Side) -> list[int]:
    """In their order."""
    return sorted(set.intersection(*(set(steps_kept(side.journal(0).parent)) for side in (one, other))))


def _matched(one: _Side, other: _Side, step: int) -> list[tuple[Rollout, Rollout]]:
    """First rollouts to the same prompts."""
    paths = [side.journal(step) for side in (one, other)]
    common = set.intersection(*(set(rollout_keys(path)) for path in paths))
    wanted = set(sorted(key for key in common if key.sample == 0)[:PROMPTS])
    pairs = zip(*(read_step(path, wanted.__contains__) for path in paths), strict=True)
    return [pair for pair in pairs if pair[0].prompt_ids.tolist() == pair[1].prompt_ids.tolist() and all(_traced(pair))]


def _traced(pair: tuple[Rollout, Rollout]) -> Iterator[bool]:
    return (rollout.tokens is not None for rollout in pair)


def _told(
    vanilla: _Side, trb: _Side, step: int, epsilon: float, pairs: Sequence[tuple[Rollout, Rollout]]
) -> SideBySide | Note:
    """As texts, by the student's own tokenizer, which is looked for on this machine alone."""
    student = vanilla.run.config().models.student
    try:
        tokenizer = AutoTokenizer.from_pretrained(student, local_files_only=True)
    except (OSError, ValueError):
        return "Rollouts side by side are left out", f": no tokenizer of {student} is here to read them."
    completions = [
        _completion(tokenizer, name, rollout, budget)
        for pair in pairs
        for name, rollout, budget in zip((vanilla.name, trb.name), pair, (None, epsilon), strict=True)
    ]
    return SideBySide(step, epsilon, completions)


def _completion(tokenizer: Any, name: str, rollout: Rollout, epsilon: float | None) -> TracedCompletion:
    assert rollout.tokens is not None
    prompt = tokenizer.decode(rollout.prompt_ids.tolist(), skip_special_tokens=True)
    pieces = token_pieces(tokenizer, rollout.token_ids_T[:TOKENS].tolist())
    return TracedCompletion(
        prompt=prompt if len(prompt) <= PROMPT_LETTERS else "…" + prompt[-PROMPT_LETTERS:],
        label=name if len(rollout) <= TOKENS else f"{name}, the first {TOKENS} of {len(rollout)} tokens",
        text="".join(pieces),
        pieces=pieces,
        summary={} if epsilon is None else {"rule": Rule.TRUST_REGION.value, "epsilon": epsilon},
        tokens=TokenStatistics.of(values_T[:TOKENS].tolist() for values_T in rollout.tokens.columns()),
    )
