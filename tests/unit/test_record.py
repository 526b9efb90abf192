"""What is said of a token is spelled once, and server, journal and trainer speak of the same thing."""

from __future__ import annotations

import ast
import dataclasses
import typing
from pathlib import Path

import numpy as np
import pytest

from sglang_trb.blend.types import StepOutput
from sglang_trb.display.completions import TracedCompletion
from sglang_trb.wire import trace
from sglang_trb.wire.record import MASSES, SUPPORT_SIZE, Support, TokenRecord, TokenStatistics
from trainer.rollouts import journal
from trainer.rollouts.rollout import Rollout

ROOT = Path(__file__).resolve().parents[2]
HOME = "sglang_trb/wire/record.py"
MEANS = {
    "sglang_trb/engine/metrics.py": "names of Prometheus counters",
    "trainer/losses/compute.py": "names of means that the trainer measures itself",
}
"""Files whose names are those of other quantities: means over tokens."""


def names_in(node: ast.AST) -> set[str]:
    """What a class declares as fields, or a collection lists as texts."""
    if isinstance(node, ast.ClassDef):
        return {
            field.target.id for field in node.body if isinstance(field, ast.AnnAssign) and hasattr(field.target, "id")
        }
    if isinstance(node, ast.Dict):
        elements: list[ast.expr] = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        elements = node.elts
    else:
        return set()
    return {
        element.value for element in elements if isinstance(element, ast.Constant) and isinstance(element.value, str)
    }


def lists_of_fields(source: str) -> list[set[str]]:
    """Every place of a source that spells two or more fields of the record."""
    record = {*TokenRecord.names()}
    found = [record & names_in(node) for node in ast.walk(ast.parse(source))]
    return [names for names in found if len(names) > 1]


def test_no_other_file_spells_the_record():
    paths = [path for package in ("sglang_trb", "trainer") for path in sorted((ROOT / package).rglob("*.py"))]
    spelled = {str(path.relative_to(ROOT)): lists_of_fields(path.read_text()) for path in paths}
    assert {path for path, found in spelled.items() if found} == {HOME, *MEANS}


@pytest.mark.parametrize(
    "source", ['FIELDS = ("beta", "kl")', '{"beta": 1, "kl": 2}', "class A:\n    beta: int\n    kl: int"]
)
def test_a_second_spelling_is_found(source):
    assert lists_of_fields(source) == [{"beta", "kl"}]


def origin(owner: type, field: str) -> type:
    """The class that a field is declared as, without its parameter and without None."""
    hint = typing.get_type_hints(owner)[field]
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    declared = options[0] if typing.get_origin(hint) not in (TokenRecord, TokenStatistics, Support) else hint
    return typing.get_origin(declared)


def test_kernel_server_journal_and_trainer_share_the_classes():
    assert origin(StepOutput, "record") is TokenRecord and issubclass(TokenRecord, TokenStatistics)
    assert origin(StepOutput, "student_support") is origin(StepOutput, "teacher_support") is Support
    assert origin(Rollout, "tokens") is TokenStatistics and origin(TracedCompletion, "tokens") is TokenStatistics
    assert origin(Rollout, "support") is origin(Rollout, "teacher_support") is Support
    assert trace.TokenRecord is TokenRecord and trace.Support is Support
    assert journal.TokenStatistics is TokenStatistics and journal.Support is Support


def test_every_field_says_its_unit_and_its_meaning():
    for field in (*dataclasses.fields(TokenRecord), *dataclasses.fields(Support)):
        assert field.metadata["unit"] and field.metadata["meaning"]


def test_columns_keep_their_order():
    record = TokenRecord.of(np.arange(len(TokenRecord.names())))
    assert TokenRecord.names()[: -len(MASSES)] == TokenStatistics.names() and SUPPORT_SIZE == 16
    assert record.columns() == tuple(range(9)) and record.map(lambda x: x + 1).kl == record.kl + 1
    twice = TokenRecord.joined([record, record], list)
    assert twice.named()["beta"] == [3, 3]
    with pytest.raises(ValueError, match="shorter"):
        TokenRecord.of([1.0])
