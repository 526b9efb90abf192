"""The pictures of docs/performance.md: they show what benchmarks/results/ and the page's table say."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import pictures
from benchmarks.kernels import H100_BYTES_PER_SECOND, VOCAB

PAGE = pictures.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn():
    return pictures.drawings()


def test_the_pictures_are_current(drawn):
    for name, svg in drawn.items():
        path = pictures.PICTURES / f"{name}.svg"
        assert path.read_text(encoding="utf-8") == svg, f"{path.name} is old: run python -m benchmarks.pictures"
    assert {path.stem for path in pictures.PICTURES.glob("performance_*")} == set(drawn)


def test_the_page_shows_each_with_a_text_for_who_does_not_see_it(drawn):
    shown = dict(re.findall(r"!\[(.+)\]\(pictures/(.+)\.svg\)", PAGE))
    assert sorted(shown.values()) == sorted(drawn)
    assert all(len(text) > 60 for text in shown)


def test_every_colour_has_a_dark_one(drawn):
    for svg in drawn.values():
        style, rest = re.fullmatch(r"(?s)(.*</style>)(.*)", svg).groups()
        light, dark = style.split("@media (prefers-color-scheme:dark)")
        used = set(re.findall(r"var\((--\w+)\)", rest))
        assert used <= set(re.findall(r"--\w+(?=:)", light)) & set(re.findall(r"--\w+(?=:)", dark))
        assert not re.search(r"(?:fill|stroke): ?#", rest)


def test_the_roofline_is_bytes_over_speed():
    plan = json.loads((pictures.RESULTS / "kernels-cpu.json").read_text())
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        for rows in (1, 512):
            least, planned = pictures.bounds_us(plan, dtype, rows)
            assert least == pytest.approx(1e6 * rows * 2 * VOCAB * size / H100_BYTES_PER_SECOND)
            assert planned == pytest.approx(least * (2 + plan["passes_of_the_search"]["mean"]))


def test_a_row_that_would_not_be_drawn_is_refused():
    with pytest.raises(AssertionError, match="sampling"):
        pictures.step_shares(PAGE.replace("| the blend | 8% | 13% |", "| sampling | 8% | 13% |"))
