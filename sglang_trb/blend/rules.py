"""What each rule makes of the student's and the teacher's distributions: one object a rule, in one table.

Its name, code and parameters stand in `sglang_trb.wire.rules`, its float64 definition in `reference`.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import torch

from sglang_trb.blend import solvers
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.draw import MAIN, TEACHER_REPLACEMENT, draw, uniform
from sglang_trb.blend.filters import in_top_k
from sglang_trb.blend.solver import SMALL
from sglang_trb.blend.types import COLUMN_DTYPES, RowControls
from sglang_trb.wire.params import BlendParams
from sglang_trb.wire.rules import PARAMETERS, Rule

SMALL_BUDGET = "small_budget"
"""Work beside a rule's own: some budget lies between 0 and `solver.SMALL`."""


def columns(rows: Sequence[BlendParams]) -> dict[str, tuple[list[float], torch.dtype]]:
    """The values [B] of every rule's parameters and their dtypes, by the parameter's name; neutral in others' rows."""
    return {
        name: ([getattr(row, name) for row in rows], COLUMN_DTYPES[parameter.type])
        for name, parameter in PARAMETERS.items()
    }


def work_of(params: BlendParams) -> frozenset[str]:
    """What a request asks of a step beyond the student's own draw: entries of ``RowControls.work``."""
    return BLENDED_RULES[params.rule].work(params) if params.rule in BLENDED_RULES else frozenset()


FUSED_WORK = frozenset({Rule.TRUST_REGION.value, Rule.TEACHER.value})
"""What a fused step knows; a row that asks for other work, or filters, is left to torch."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a rule makes of its rows; float64 [B], whatever in the rows of others.

    Attributes:
        mu: the behaviour policy.
        beta_B: how far it went from student (0) to teacher (1).
        kl_B: KL(mu || p) in nats, +inf where mu leaves p's support.
        empty_B: bool, rows from which nothing can be drawn; None: those of which ``p`` is empty.
        ids_B: int64 tokens drawn by the rule itself; None: they are to be drawn from mu with the main stream.
        others_are_student: whether the rows of others hold ``p`` bit for bit, beta = KL = 0.
    """

    mu: Distribution
    beta_B: torch.Tensor
    kl_B: torch.Tensor
    empty_B: torch.Tensor | None = None
    ids_B: torch.Tensor | None = None
    others_are_student: bool = False


class BlendedRule(abc.ABC):
    """A rule that draws from another distribution than the student's.

    ``apply`` must neither wait for the device nor make a shape of a value: the step is captured in CUDA graphs.
    """

    filters_teacher = False
    """Whether top-k, top-p and min-p cut the teacher's distribution and leave the student's whole; else the reverse."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def work(self, params: BlendParams) -> frozenset[str]:
        """What one row of this rule asks of a step; known on the host."""
        return frozenset({self.rule.value})

    def rows(self, controls: RowControls) -> torch.Tensor:
        """The rows to which the rule applies; bool [B]."""
        return controls.rule_B == self.rule.code

    @abc.abstractmethod
    def apply(self, p: Distribution, q: Distribution, rows_B: torch.Tensor, controls: RowControls) -> Outcome:
        """The rule's distribution from the student's ``p`` and the teacher's ``q``, filtered as the rule says."""


class TrustRegion(BlendedRule):
    """mu ∝ p^(1-beta) q^beta with the largest beta that keeps KL(mu || p) <= epsilon (Eq. 1, 2)."""

    def work(self, params: BlendParams) -> frozenset[str]:
        work = super().work(params) if params.epsilon > 0 else frozenset()
        return work | {SMALL_BUDGET} if 0 < params.epsilon < SMALL else work

    def rows(self, controls: RowControls) -> torch.Tensor:
        return super().rows(controls) & (controls.settings["epsilon"] > 0)

    def apply(self, p: Distribution, q: Distribution, rows_B: torch.Tensor, controls: RowControls) -> Outcome:
        epsilon_B = torch.where(rows_B, controls.settings["epsilon"], 0.0)
        solve = solvers.find(controls.backend, epsilon_B.device).solve
        blend = solve(p, q, epsilon_B, any_small=controls.may_ask(SMALL_BUDGET))
        return Outcome(blend.mu, blend.beta_B, blend.kl_B, others_are_student=True)


class Teacher(BlendedRule):
    """The teacher's own distribution."""

    filters_teacher = True

    def apply(self, p: Distribution, q: Distribution, rows_B: torch.Tensor, controls: RowControls) -> Outcome:
        return Outcome(q, torch.ones_like(q.log_total_B), kl(q, p), q.empty())


class Skd(BlendedRule):
    """Speculative knowledge distillation (App. A.2): the student's draw if the teacher's top-K holds it, else the
    teacher's. mu is the exact marginal; beta is 1 where the token is the teacher's."""

    def apply(self, p: Distribution, q: Distribution, rows_B: torch.Tensor, controls: RowControls) -> Outcome:
        kept_BV = in_top_k(q, controls.settings["skd_top_k"])
        tempered_BV = q.log_weights_BV / controls.settings["skd_temperature"][:, None]
        replacement = Distribution.from_logits(tempered_BV.masked_fill_(~q.support(), float("-inf")))
        kept_p_BV = torch.where(kept_BV, p.weights_BV, 0.0)
        replaced_B1 = torch.where(kept_BV, 0.0, p.weights_BV).sum(1, keepdim=True)
        marginal = Distribution.from_logits((kept_p_BV + replaced_B1 * replacement.weights_BV).log())

        student_ids_B = drawn(p, controls)
        keeps_B = kept_BV.gather(1, student_ids_B[:, None]).squeeze(1)
        key = controls.seed_B, controls.position_B
        ids_B = torch.where(keeps_B, student_ids_B, draw(replacement.weights_BV, uniform(*key, TEACHER_REPLACEMENT)))
        likeliest_B = marginal.log_weights_BV.argmax(1)
        ids_B = torch.where(controls.greedy_B, likeliest_B, ids_B)
        could_B = kept_p_BV.gather(1, likeliest_B[:, None]).squeeze(1) > 0
        keeps_B = torch.where(controls.greedy_B, could_B, keeps_B)
        return Outcome(marginal, (~keeps_B).double(), kl(marginal, p), p.empty() | q.empty(), ids_B)


class Mixture(BlendedRule):
    """mu = (1 - alpha) p + alpha q, the teacher-mixed sampling of Gu et al. (2023), MiniLLM; beta is alpha."""

    def rows(self, controls: RowControls) -> torch.Tensor:
        return super().rows(controls) & (controls.settings["mixture_alpha"] > 0)

    def apply(self, p: Distribution, q: Distribution, rows_B: torch.Tensor, controls: RowControls) -> Outcome:
        alpha_B = controls.settings["mixture_alpha"]
        log_p_BV, log_q_BV = p.log_probs() + (-alpha_B).log1p()[:, None], q.log_probs() + alpha_B.log()[:, None]
        whole_B = alpha_B == 1
        mu = Distribution.from_logits(torch.logaddexp(log_p_BV, log_q_BV)).where(whole_B, q)
        return Outcome(mu, alpha_B.clone(), kl(mu, p), q.empty() | (p.empty() & ~whole_B))


BLENDED_RULES: dict[Rule, BlendedRule] = {
    blended.rule: blended
    for blended in (TrustRegion(Rule.TRUST_REGION), Teacher(Rule.TEACHER), Skd(Rule.SKD), Mixture(Rule.MIXTURE))
}
"""Every rule but ``student``, in the order in which a step applies them."""


def drawn(mu: Distribution, controls: RowControls) -> torch.Tensor:
    """A draw of the main stream; greedy rows take the most likely token (ties: the lowest id)."""
    drawn_B = draw(mu.weights_BV, uniform(controls.seed_B, controls.position_B, MAIN))
    return torch.where(controls.greedy_B, mu.log_weights_BV.argmax(1), drawn_B)


def kl(mu: Distribution, p: Distribution) -> torch.Tensor:
    """KL(mu || p) [B] in nats of softmaxes, +inf where mu leaves p's support."""
    outside_B = (mu.weights_BV.gt(0) & ~p.support()).any(1)
    kl_B = mu.mean(mu.log_weights_BV - p.log_weights_BV) - (mu.log_total_B - p.log_total_B)
    return torch.where(outside_B, torch.inf, kl_B.clamp(min=0.0))
