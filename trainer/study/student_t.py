"""Student's t: tails and quantiles for any degrees of freedom; NumPy and `statistics` have the normal law alone.

With t = sqrt(df) tan(angle) the density is C cos(angle)^(df - 1), which Gauss-Legendre quadrature integrates from 0 on.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)
_FARTHEST = 40.0  # in units of 1 / sqrt(df), where the density lives: beyond, its mass is below 1e-300


def two_sided(t: float, df: float) -> float:
    """P(abs(T) > ``t``), 0 to 1, to 1e-9 absolute; to 1e-6 below two degrees of freedom.

    Args:
        t: >= 0; infinity is allowed.
        df: degrees of freedom, >= 1.
    """
    angle = min(math.atan(t / math.sqrt(df)), _FARTHEST / math.sqrt(df))
    powers = np.cos((_NODES + 1) / 2 * angle) ** (df - 1)
    inside = 2 * math.sqrt(df) * _density_at_0(df) * angle / 2 * float(_WEIGHTS @ powers)
    return min(max(1 - inside, 0.0), 1.0)


def quantile(confidence: float, df: float) -> float:
    """The t with P(abs(T) <= t) = ``confidence``, to 1e-6 relative.

    Newton's method from the normal quantile, which is too small: P is concave in t, so every step stays below the root.

    Args:
        confidence: above 0, below 1.
        df: degrees of freedom, >= 1.
    """
    t = NormalDist().inv_cdf((1 + confidence) / 2)
    for _ in range(30):
        slope = 2 * _density_at_0(df) * (1 + t * t / df) ** (-(df + 1) / 2)
        step = (two_sided(t, df) - (1 - confidence)) / slope
        t += step
        if abs(step) < 1e-10 * t:
            break
    return t


def _density_at_0(df: float) -> float:
    return math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
