"""The random numbers and the draw: uniform, independent, the same everywhere, never a token of weight 0."""

import pytest
import torch
from scipy import stats

from sglang_trb.blend.draw import MAIN, TEACHER_REPLACEMENT, draw, uniform
from tests.blend_rows import FALSE_FAILURE

DRAWS = 20_000
MASK_64 = (1 << 64) - 1


def keys(*values):
    return [torch.tensor(value, dtype=torch.int64) for value in values]


def splitmix(value):
    """SplitMix64 in Python's integers."""
    value = (value + 0x9E3779B97F4A7C15) & MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def test_splitmix_is_the_published_generator():
    assert [hex(splitmix(i * 0x9E3779B97F4A7C15 & MASK_64)) for i in range(3)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize("position", [0, 1, 131_071])
@pytest.mark.parametrize("stream", [MAIN, TEACHER_REPLACEMENT])
def test_agrees_with_python_integers(seed, position, stream):
    hashed = splitmix((splitmix((splitmix(seed & MASK_64) + position) & MASK_64) + stream) & MASK_64)
    assert uniform(*keys([seed], [position]), stream).item() == (hashed >> 11) * 2.0**-53


def test_known_values():
    """Pinned: a change here changes every seeded answer of every user."""
    seeds, positions = keys([0, 0, 1, 42, 2**62], [0, 1, 0, 7, 131_071])
    assert uniform(seeds, positions, MAIN).tolist() == KNOWN_MAIN
    assert uniform(seeds, positions, TEACHER_REPLACEMENT).tolist() == KNOWN_REPLACEMENT


KNOWN_MAIN = [
    0.13870941014555427,
    0.5803592313314876,
    0.6935121390102292,
    0.08054066123479331,
    0.23316652691085515,
]
KNOWN_REPLACEMENT = [
    0.2582654469187293,
    0.6722736431646704,
    0.42321144819582723,
    0.544466049394383,
    0.09786203318700037,
]


@pytest.mark.parametrize("varies", ["seed", "position", "both"])
@pytest.mark.parametrize("stream", [MAIN, TEACHER_REPLACEMENT])
def test_uniform(varies, stream):
    index, fixed = torch.arange(DRAWS), torch.full((DRAWS,), 1234)
    drawn = uniform(fixed if varies == "position" else index, fixed if varies == "seed" else index, stream).numpy()
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    assert stats.kstest(drawn, "uniform").pvalue > FALSE_FAILURE


def test_neighbouring_keys_are_independent():
    """Pairs of draws fall evenly into 16 × 16 cells, for streams, positions, seeds, and seed + position constant."""
    index = torch.arange(DRAWS)
    first = uniform(index, index, MAIN)
    others = {
        "stream": uniform(index, index, TEACHER_REPLACEMENT),
        "position": uniform(index, index + 1, MAIN),
        "seed": uniform(index + 1, index, MAIN),
        "swapped": uniform(index + 1, index - 1, MAIN),
        "position for stream": uniform(index, index - 1, TEACHER_REPLACEMENT),
    }
    for name, second in others.items():
        cells = (first * 16).long() * 16 + (second * 16).long()
        counts = cells.bincount(minlength=256).numpy()
        assert stats.chisquare(counts).pvalue > FALSE_FAILURE / len(others), name
        assert not first.eq(second).any(), name


def test_a_draw_depends_on_its_key_alone():
    seeds, positions = torch.arange(50), torch.arange(50) * 3
    together = uniform(seeds, positions, MAIN)
    alone = torch.cat([uniform(seeds[i : i + 1], positions[i : i + 1].int(), MAIN) for i in range(50)])
    assert torch.equal(together, alone)


# --- inverting the cumulative weights


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_frequencies_follow_the_weights(scale):
    weights_V = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0, 4.0, 0.0], dtype=torch.float64)
    ids = draw((weights_V * scale).expand(DRAWS, -1), uniform(torch.arange(DRAWS), torch.zeros(DRAWS), MAIN))
    counts = ids.bincount(minlength=7)
    assert counts[weights_V == 0].sum() == 0
    on = weights_V > 0
    assert stats.chisquare(counts[on].numpy(), (weights_V[on] / 10 * DRAWS).numpy()).pvalue > FALSE_FAILURE


EDGES = [0.0, 5e-324, 0.5, 1.0 - 2.0**-53]


@pytest.mark.parametrize("uniform_value", EDGES)
@pytest.mark.parametrize(
    "weights",
    [
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 1e-300],
        [0.0, 1e-300, 1.0, 1e-300, 0.0],
        [1.0, 1e-17, 0.0, 0.0],
        [0.0, 5e-324, 0.0],
        [0.1] * 10 + [0.0] * 3,
    ],
)
def test_never_a_weight_of_zero(weights, uniform_value):
    weights_BV = torch.tensor([weights], dtype=torch.float64)
    token = draw(weights_BV, torch.tensor([uniform_value], dtype=torch.float64)).item()
    assert weights[token] > 0.0


def test_zero_draws_the_first_and_almost_one_the_last():
    weights_BV = torch.tensor([[0.0, 0.25, 0.5, 0.25, 0.0]] * 2, dtype=torch.float64)
    assert draw(weights_BV, torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)).tolist() == [1, 3]


def test_never_a_weight_of_zero_at_full_vocabulary():
    """Half of 151,936 tokens forbidden, every draw on the boundary between two tokens."""
    weights_V = torch.rand(151_936, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights_V[::2] = 0.0
    cumulative = weights_V.cumsum(0)
    edges = (cumulative / cumulative[-1])[:: 151_936 // 50].clamp(max=1.0 - 2.0**-53)
    ids = draw(weights_V.expand(len(edges), -1), edges)
    assert weights_V[ids].gt(0).all()


def test_a_row_of_zeros_stays_in_range():
    assert 0 <= draw(torch.zeros(1, 5, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)).item() < 5
