"""Draws the pictures of docs/concepts.md from the library itself: docs/pictures/*.svg.

python scripts/concept_pictures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "sglang-trb", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}

import matplotlib.pyplot as plt  # noqa: E402

from sglang_trb import trust_region_blend  # noqa: E402
from trainer.schedules import trust_region_budget  # noqa: E402

PICTURES = Path(__file__).resolve().parents[1] / "docs/pictures"
TOKENS = [" the", " a", " 7", " 12", " 13", " so"]
STUDENT = [1.6, 1.2, 1.0, 0.2, -0.6, 0.4]
TEACHER = [-0.5, -1.0, -0.2, 0.6, 2.6, 0.0]
"""Logits of a prefix where the student hesitates and the teacher knows."""

BLUE, ORANGE, GREY = "#2f6db3", "#d9772b", "#8a96a3"


def blend(epsilon: float) -> tuple[np.ndarray, float, float]:
    """mu, beta and KL(mu || p) of the example."""
    result = trust_region_blend(torch.tensor([STUDENT]), torch.tensor([TEACHER]), torch.tensor([epsilon]))
    return result.log_mu_BV.exp()[0].numpy(), result.beta_B.item(), result.kl_B.item()


def bars() -> Any:
    """The blend at four budgets."""
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharey=True, layout="constrained")
    for axis, epsilon in zip(axes, (0.0, 0.05, 0.5, 10.0), strict=True):
        mu, beta, kl = blend(epsilon)
        axis.bar(range(6), torch.tensor(TEACHER).softmax(0), 0.8, color=ORANGE, alpha=0.25, label="teacher q")
        axis.bar(range(6), torch.tensor(STUDENT).softmax(0), 0.8, color=BLUE, alpha=0.25, label="student p")
        axis.bar(range(6), mu, 0.4, color="#333333", label="drawn from: μ")
        axis.set_title(f"ε = {epsilon:g}: β = {beta:.2f}, KL = {kl:.2f}", fontsize=11)
        axis.set_xticks(range(6), TOKENS)
    axes[0].legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("probability")
    return figure


def budget() -> Any:
    """KL over beta, and where budgets end it."""
    p, q = torch.tensor(STUDENT, dtype=torch.float64), torch.tensor(TEACHER, dtype=torch.float64)
    betas = np.linspace(0, 1, 200)
    log_p = p.log_softmax(0)
    mus = [((1 - beta) * p + beta * q).log_softmax(0) for beta in betas]
    kls = [float((mu.exp() * (mu - log_p)).sum()) for mu in mus]
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axis.plot(betas, kls, color="#333333")
    for epsilon in (0.05, 0.5):
        _, beta, _ = blend(epsilon)
        axis.hlines(epsilon, 0, beta, color=BLUE, linestyle="--", linewidth=1)
        axis.vlines(beta, 0, epsilon, color=BLUE, linestyle="--", linewidth=1)
        offset = (7, 5 if beta < 0.4 else -12)
        text = f"ε = {epsilon:g} → β = {beta:.2f}"
        axis.annotate(text, (beta, epsilon), offset, textcoords="offset points", fontsize=9)
    axis.set(xlabel="β", ylabel="KL(μ‖p), nats", xlim=(0, 1), ylim=(0, None))
    return figure


def annealing() -> Any:
    """The budget over the steps of a run."""
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    steps = range(61)
    for warmup, colour in ((15, BLUE), (25, ORANGE), (50, GREY)):
        axis.plot(steps, [trust_region_budget(0.01, warmup, k) for k in steps], color=colour, label=f"K = {warmup}")
    axis.legend(frameon=False)
    axis.set(xlabel="step k", ylabel="budget $ε_k$, nats a token", xlim=(0, 60), ylim=(0, None))
    return figure


def main() -> None:
    for name, draw in (("blend", bars), ("budget", budget), ("annealing", annealing)):
        path = PICTURES / f"{name}.svg"
        draw().savefig(path, metadata={"Date": None})
        print(f"wrote {path.relative_to(PICTURES.parents[1])}")


if __name__ == "__main__":
    main()
