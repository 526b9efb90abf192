"""Where stop ids come from, which one is primary, and the alignment of a pair."""

import json

import pytest

from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.stops import stop_alignment, stop_ids

ENDOFTEXT, IM_END, SIZE = 151643, 151645, 151669  # Qwen3


@pytest.fixture
def save(tmp_path):
    def write(name="model", **files):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": 5}}, (5,)),
        ({"generation_config": {"eos_token_id": [5, 3]}}, (5, 3)),
        ({"generation_config": {"eos_token_id": [5, 3]}, "config": {"eos_token_id": 3}}, (3, 5)),
        ({"generation_config": {"eos_token_id": [5, 3]}, "config": {"eos_token_id": 7}}, (5, 3)),
        ({"generation_config": {"eos_token_id": [5, 3]}, "config": {"eos_token_id": [3, 5]}}, (5, 3)),
        ({"generation_config": {"eos_token_id": [5, 3, 5]}}, (5, 3)),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"generation_config": {}, "config": {"eos_token_id": 0}}, (0,)),
        ({"config": {"eos_token_id": 1, "text_config": {"eos_token_id": 2}}}, (2,)),
        ({"config": {"eos_token_id": 1, "text_config": {"eos_token_id": None}}}, (1,)),
        ({"generation_config": {"eos_token_id": [1, 2]}, "config": {"text_config": {"eos_token_id": 2}}}, (2, 1)),
    ],
)
def test_sources_in_order(save, files, expected):
    assert stop_ids(save(**files)) == expected


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>"}])
def test_the_tokenizers_eos_is_the_last_resort(save, eos):
    tokens = {"added_tokens": [{"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"}]}
    assert stop_ids(save(config={}, tokenizer_config={"eos_token": eos}, tokenizer=tokens)) == (2,)


@pytest.mark.parametrize("files", [{}, {"config": {}}, {"tokenizer_config": {"eos_token": None}, "tokenizer": {}}])
def test_no_stop_id_at_all_is_an_error(save, files):
    with pytest.raises(InvalidParameter, match=r"stop ids of .*model.*: got \[\]; allowed: at least one id"):
        stop_ids(save(**files))


def test_an_override_wins_and_its_first_id_is_primary(save):
    assert stop_ids(save(config={"eos_token_id": 3}), override=(9, 3)) == (9, 3)


@pytest.mark.parametrize("override", [(), (-1,), (True,), (1.0,), ("5",)])
def test_a_wrong_override_is_refused(save, override):
    with pytest.raises(InvalidParameter, match="override of the stop ids"):
        stop_ids(save(config={"eos_token_id": 3}), override=override)


@pytest.fixture
def qwen3(save):
    base = save("base", config={"eos_token_id": ENDOFTEXT}, generation_config={"eos_token_id": ENDOFTEXT})
    generation = {"eos_token_id": [IM_END, ENDOFTEXT]}
    return base, save("post-trained", config={"eos_token_id": IM_END}, generation_config=generation)


def test_qwen3_base_from_post_trained(qwen3):
    alignment = stop_alignment(*qwen3, SIZE)
    assert alignment.student_ids == (ENDOFTEXT,)
    assert alignment.teacher_ids == (IM_END, ENDOFTEXT)
    assert alignment.canonical_id == ENDOFTEXT


def test_both_sides_can_be_overridden(qwen3):
    alignment = stop_alignment(*qwen3, SIZE, student_override=(IM_END,), teacher_override=(ENDOFTEXT,))
    assert (alignment.student_ids, alignment.teacher_ids, alignment.canonical_id) == ((IM_END,), (ENDOFTEXT,), IM_END)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_stop_id_outside_the_vocabulary_is_refused(qwen3, side):
    with pytest.raises(InvalidParameter, match=rf"stop ids of the {side}: got \[{SIZE}\]; allowed: .* 0..{SIZE - 1}"):
        stop_alignment(*qwen3, SIZE, **{f"{side}_override": (SIZE,)})
