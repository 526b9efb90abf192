"""What a text gives as its answer: in linear time, whatever the text."""

from __future__ import annotations

import time

import pytest

from trainer.grading.answers import last_boxed


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r"\boxed{4} no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"} \boxed{1}} \boxed{{2}", "1"),
        (r"\boxed{\left\{ \frac{1}{2} \right.} \}", r"\left\{ \frac{1}{2} \right."),
        (r"\boxed{1 \\{2}}", r"1 \\{2}"),
        (r"\\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed 5, so", "5"),
        (r"\boxed -3/4.", "-3/4"),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed\sqrt2", r"\sqrt2"),
        (r"\boxed{5} in \boxed form", "5"),
        (r"\boxedeq{5}", None),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed{{", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_counts(text, want):
    assert last_boxed(text) == want


@pytest.mark.parametrize(
    "part",
    [
        r"\boxed{",
        r"\boxed{}",
        r"\boxed\frac{",
        r"\boxed\frac{1}{",
        r"\boxed 1,",
        r"\boxed ",
        "{",
        "{}",
        "}",
        "\\",
        r"\{",
        "1,",
    ],
)
def test_the_search_is_linear(part):
    """Four times the text takes four times the time; a quadratic search takes sixteen times."""

    def seconds(text):
        times = []
        for _ in range(3):
            started = time.thread_time()
            last_boxed(text)
            times.append(time.thread_time() - started)
        return min(times)

    for ending in ("", "}" * 10_000):
        text = part * (40_000 // len(part)) + ending
        assert seconds(text * 4) < 10 * seconds(text) + 0.01
