"""What code, tests, examples and configurations cite is in the repository; the pages name what the code has."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from sglang_trb.wire.params import PREFIX
from sglang_trb.wire.record import MASSES, Support, TokenStatistics
from sglang_trb.wire.rules import PARAMETERS, Rule
from trainer.losses import LOSSES

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sglang_trb", "trainer", "tests", "examples", "benchmarks", "server_configs", "scripts", "docs")
CITED = re.compile(r"(docs/\w+\.md)(?:#([\w-]+)|,\s+\"([^\"]+)\")?")
STRANGERS = re.compile(
    r"\b(METHODS|CONTRACT|SGLANG|BLENDING|TRAINER|FAST|MICRO|STYLE|CASES)(\.md|,? (section|§))|§ ?\d"
)
"""Names of definitions that a reader of this repository does not have."""


def sources() -> list[Path]:
    found = itertools.chain.from_iterable((ROOT / folder).rglob("*") for folder in FOLDERS)
    kinds = (".py", ".md", ".yaml", ".sh")
    return [path for path in [*found, *ROOT.glob("*.md"), ROOT / "Makefile"] if path.suffix in kinds]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#{1,6} (.+)$", page.read_text(), re.M)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def prose(text: str) -> str:
    """With comment signs and line breaks taken out: a citation may go over two lines."""
    return re.sub(r"\s*\n\s*(#:?\s)?", " ", text)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_cited_is_there(path):
    text = prose(path.read_text(encoding="utf-8"))
    for page, fragment, heading in CITED.findall(text):
        if path.parent == ROOT / "docs" and not (fragment or heading):
            continue  # its links are checked by the site's build
        assert (ROOT / page).is_file(), f"{page} is cited and not there: write it, or cite another page"
        known = headings(ROOT / page)
        if fragment:
            assert fragment in map(anchor, known), f"{page} has no heading for #{fragment}; it has: {known}"
        if heading:
            assert heading in known, f"{page} has no heading {heading!r}; it has: {known}"
    if path.name not in (Path(__file__).name, "CHANGELOG.md"):
        stranger = STRANGERS.search(text)
        assert stranger is None, f"{stranger[0]!r}: cite a heading of docs/methods.md, docs/wire.md, or the paper"


def test_a_missing_heading_is_found():
    assert CITED.findall('see docs/methods.md, "Losses", and docs/wire.md#response.') == [
        ("docs/methods.md", "", "Losses"),
        ("docs/wire.md", "response", ""),
    ]
    assert anchor("What the numbers mean") == "what-the-numbers-mean"


def rows(page: str, heading: str) -> dict[str, str]:
    """The first table below a heading: its first column, without the backticks, and the row."""
    below = (ROOT / page).read_text().split(f"# {heading}\n", 1)[1]
    lines = list(itertools.takewhile(bool, below[below.index("|") :].splitlines()))
    return {re.sub("[` ]", "", line.split("|")[1]): line for line in lines[2:]}


def test_the_wire_page_names_every_key_with_its_range():
    table = rows("docs/wire.md", "Request")
    assert {*table} == {PREFIX + "rule", PREFIX + "return", *(parameter.key for parameter in PARAMETERS.values())}
    for parameter in PARAMETERS.values():
        assert parameter.allowed in table[parameter.key]
    assert all(f"`{rule.value}`" in table[PREFIX + "rule"] for rule in Rule)


def test_the_wire_page_names_every_field():
    tokens, supports = rows("docs/wire.md", "Tokens"), rows("docs/wire.md", "Supports")
    assert tuple(tokens) == TokenStatistics.names() and tuple(supports) == Support.names()
    page = (ROOT / "docs/wire.md").read_text()
    assert all(f"`max_{mass}`" in page for mass in MASSES)


def test_the_methods_page_names_every_rule_and_every_loss():
    page = (ROOT / "docs/methods.md").read_text()
    assert tuple(rows("docs/methods.md", "Rollout rules")) == tuple(rule.value for rule in Rule)
    assert all(f"**`{rule.value}`**" in page for rule in Rule)
    assert all(f"**`{loss}`**" in page for loss in LOSSES)
