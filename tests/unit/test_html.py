"""The page: one file with nothing from outside, nothing of the model's text alive in it, and the right numbers."""

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_trb.display.completions import TracedCompletion
from sglang_trb.display.page import SHORT, page
from sglang_trb.wire.record import TokenStatistics

VOID = {"meta", "br", "path", "rect", "link", "img"}


class Reader(HTMLParser):
    """Collects tags, and fails on markup that does not nest."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.stack, self.text, self.tokens = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "span" and "data-v" in dict(attrs):
            self.tokens.append(dict(attrs))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def read(document):
    reader = Reader()
    reader.feed(document)
    assert reader.stack == []
    return reader


def completion(prompt="What is 1 + 1?", label="ε = 0.1", pieces=("1 + 1 = ", "2"), **changes):
    n = len(pieces)
    values = {
        "beta": [0.5] * n,
        "kl": [0.1] * n,
        "student_logprob": [-1.0] * n,
        "teacher_logprob": [-0.5] * n,
        "behavior_logprob": [-0.7] * n,
        "student_entropy": [1.0] * n,
        "teacher_entropy": [1.0] * n,
    }
    tokens = TokenStatistics(**{name: changes.pop(name, value) for name, value in values.items()})
    about = {"summary": {"rule": "trust_region", "epsilon": 0.1}} | changes
    return TracedCompletion(prompt=prompt, label=label, text="".join(pieces), pieces=[*pieces], tokens=tokens, **about)


LONG = ["word "] * (SHORT + 1)

ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!-- ",
    "]]>",
    "&lt;script&gt;",
    "</style><style>*{display:none}",
    "\x00\x1b[31m\u202e",
    "\ud800",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("pieces", [["", ""], LONG])
def test_untrusted_text_stays_text(attack, pieces):
    plain = read(page([completion(pieces=["x", *pieces])], title="t", note="n"))
    attacked = page([completion(prompt=attack, label=attack, pieces=[attack, *pieces])], title=attack, note=attack)
    reader = read(attacked)
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in plain.tags]
    assert {key for _, attributes in reader.tags for key in attributes if key.startswith("on")} == set()
    attacked.encode("utf-8")


@given(st.text(max_size=30), st.lists(st.text(max_size=6), max_size=30))
def test_any_text_nests_and_encodes(prompt, pieces):
    document = page([completion(prompt=prompt, pieces=pieces)])
    assert len(read(document).tokens) == len(pieces)
    document.encode("utf-8")


def test_nothing_is_loaded_and_only_our_script_may_run():
    document = page([completion(pieces=LONG), completion()])
    reader = read(document)
    names = {name for _, attributes in reader.tags for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "style"}
    assert "url(" not in document and "@import" not in document and "http:" not in document and "https:" not in document
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", document, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_tokens_carry_their_numbers_and_shade():
    made = completion(
        pieces=["a", "b", "c"],
        beta=[0.0, 0.43, 1.0],
        kl=[0.0, 0.01, 1e-7],
        student_logprob=[-1.0, -2.0, -math.inf],
        teacher_logprob=[-9.0, -0.25, -0.5],
        behavior_logprob=[-1.0, -1.5, -0.5],
    )
    tokens = read(page([made])).tokens
    assert [token["data-v"] for token in tokens] == [
        "0.000 0 -1.00 -9.00 -1.00",
        "0.430 0.01 -2.00 -0.25 -1.50",
        "1.000 1e-07 -inf -0.50 -0.50",
    ]
    assert [token["class"] for token in tokens] == ["t b0 odd", "t b9", "t b20"]


def test_newlines_show_and_parts_of_characters_are_marked():
    document = page([completion(pieces=["a\n", "", "é", "<|im_end|>"])])
    assert '<i class="break">↵</i>\n' in document
    assert [token["class"] for token in read(document).tokens] == ["t b10", "t b10 part", "t b10", "t b10 mark"]


def test_long_answers_get_columns_and_short_ones_share_a_table():
    laws = ("ε = 0", "ε = 0.1", "teacher")
    long = [completion("story", label, LONG) for label in laws]
    short = [completion(f"sum {i}", label, summary={"correct": i == 0}) for i in range(2) for label in laws]
    reader = read(page(long + short))
    classes = [attributes.get("class") for _, attributes in reader.tags]
    assert classes.count("columns") == 1 and classes.count("completion card") == 3
    assert classes.count("short card") == 1 and classes.count("good") == 3 and classes.count("bad") == 3
    assert "".join(reader.text).count("1 of 2") == 3


def test_a_law_without_an_answer_leaves_its_cell_empty():
    reader = read(page([completion("p", "a"), completion("q", "a"), completion("q", "b")]))
    assert len(reader.tokens) == 6


def test_spark_marks_the_budget_only_where_there_is_one():
    budget = page([completion(pieces=LONG)])
    teacher = page([completion(pieces=LONG, summary={"rule": "teacher", "epsilon": 0.0}, kl=[math.inf] * len(LONG))])
    assert 'class="budget"' in budget and "budget 0.1" in budget
    assert 'class="budget"' not in teacher and "no budget" in teacher


def test_a_long_rollout_keeps_its_highest_kl_in_the_spark():
    n = 8192
    kl = [0.01] * n
    kl[4097] = 0.1
    document = page([completion(pieces=["x"] * n, beta=[0.5] * n, kl=kl)])
    line = re.search(r'class="line" d="([^"]*)"', document).group(1)
    heights = [float(v) for v in re.findall(r"V([\d.]+)", line)]
    assert len(heights) <= 300 and min(heights) == pytest.approx(10.0)


def test_an_empty_page_and_an_empty_completion():
    assert read(page([])).tokens == []
    assert read(page([completion(pieces=[])])).tokens == []
