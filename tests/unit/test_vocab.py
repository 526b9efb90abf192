"""Which pairs of tokenizers may be blended; every file here is built by the test."""

import copy
import json
import time

import pytest

from sglang_trb.errors import InvalidParameter, PairMismatch
from sglang_trb.pair.vocab import SharedVocabulary, check_same_vocabulary
from tests.pairs import TOKENIZER_SIZE, build_pair, qwen_tokenizer

SPACE = "Ġ"  # the byte-level stand-in of b" "
WORDS = ["a", "b", "c", SPACE, "é", "ab", SPACE + "a", "abc"]
MERGES = [["a", "b"], [SPACE, "a"], ["ab", "c"]]


def byte_level(**settings):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | settings


def added(first_id, *names, special=True):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return [{"id": first_id + n, "content": name} | flags for n, name in enumerate(names)]


def tokenizer(words=WORDS, merges=MERGES, names=("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(len(words), *names),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level(),
        "post_processor": None,
        "decoder": byte_level(),
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": merges},
    }


@pytest.fixture
def save(tmp_path):
    def write(name, spec, **files):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in {"tokenizer": spec, **files}.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def compare(save):
    return lambda student, teacher: check_same_vocabulary(save("student", student), save("teacher", teacher))


def test_equal_tokenizers_pass_with_all_their_ids(compare):
    assert compare(tokenizer(), tokenizer()) == SharedVocabulary(size=11)


def test_names_and_roles_of_added_tokens_are_free(save):
    student = save("student", tokenizer(), tokenizer_config={"eos_token": "<|endoftext|>"})
    teacher = save("teacher", tokenizer(names=("<s>", "<|im_start|>", "</s>")), tokenizer_config={"eos_token": "</s>"})
    assert check_same_vocabulary(student, teacher) == SharedVocabulary(size=11, renamed=(8, 10))


def test_added_tokens_of_the_teacher_alone_are_not_valid_ids(compare):
    teacher = tokenizer()
    teacher["added_tokens"] += added(11, "<think>", "</think>", special=False)
    assert compare(tokenizer(), teacher) == SharedVocabulary(size=11, teacher_only=(11, 12))


def test_added_tokens_of_the_student_alone_are_valid_ids(compare):
    student = tokenizer()
    student["added_tokens"] += added(11, "<think>", "</think>", special=False)
    assert compare(student, tokenizer()) == SharedVocabulary(size=13, student_only=(11, 12))


def test_added_tokens_named_in_the_tokenizer_config_only_count(save):
    extra = {"added_tokens_decoder": {"11": {"content": "<think>"}}}
    shared = check_same_vocabulary(save("student", tokenizer(), tokenizer_config=extra), save("teacher", tokenizer()))
    assert shared == SharedVocabulary(size=12, student_only=(11,))


def test_an_added_token_may_be_an_ordinary_one_of_the_same_bytes(save):
    ordinary, other = save("ordinary", tokenizer(names=())), save("other", tokenizer(words=WORDS[:-1], names=("abc",)))
    for student, teacher in ((ordinary, other), (other, ordinary)):
        assert check_same_vocabulary(student, teacher) == SharedVocabulary(size=8)


def test_ids_with_other_bytes_are_named(compare):
    swapped = ["b", "a", *WORDS[2:]]
    with pytest.raises(PairMismatch, match=r"2 ids .* id 0: b'a' \(student\), b'b' \(teacher\)"):
        compare(tokenizer(), tokenizer(words=swapped))


def test_bytes_are_shown_not_their_stand_ins(compare):
    words = [*WORDS[:6], SPACE + "b", WORDS[7]]
    with pytest.raises(PairMismatch, match=r"id 6: b' a' \(student\), b' b' \(teacher\)"):
        compare(tokenizer(merges=[]), tokenizer(words=words, merges=[]))


def test_an_ordinary_token_missing_on_one_side_is_a_mismatch(compare):
    with pytest.raises(PairMismatch, match=r"1 ids .* id 7: None \(student\), b'abc' \(teacher\)"):
        compare(tokenizer(words=WORDS[:-1], merges=MERGES[:2], names=()), tokenizer(merges=MERGES[:2], names=()))


def test_only_the_first_differences_are_spelled_out(compare):
    with pytest.raises(PairMismatch, match=r"8 ids .*id 2: [^,]*, [^,]*, …$"):
        compare(tokenizer(merges=[]), tokenizer(words=WORDS[::-1], merges=[]))


def test_merges_are_compared_in_order(compare):
    with pytest.raises(PairMismatch, match=r"2 merges differ: #0: \('a', 'b'\) \(student\)"):
        compare(tokenizer(), tokenizer(merges=[MERGES[1], MERGES[0], MERGES[2]]))


def test_the_number_of_merges_is_compared(compare):
    with pytest.raises(PairMismatch, match=r"number of merges: 3 \(student\), 2 \(teacher\)"):
        compare(tokenizer(), tokenizer(merges=MERGES[:2]))


def test_old_and_new_spelling_of_merges_are_equal(compare):
    assert compare(tokenizer(), tokenizer(merges=[" ".join(merge) for merge in MERGES])).size == 11


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", None, r'normalisers differ: {"type": "NFC"} \(student\), null \(teacher\)'),
        ("pre_tokenizer", byte_level(add_prefix_space=True), r"pre-tokenisers differ: .*true"),
    ],
)
def test_how_text_is_cut_is_compared(compare, part, value, message):
    with pytest.raises(PairMismatch, match=message):
        compare(tokenizer(), tokenizer() | {part: value})


def test_spellings_of_the_same_step_are_equal(compare):
    teacher = tokenizer()
    teacher["normalizer"] = {"type": "Sequence", "normalizers": [teacher["normalizer"]]}
    teacher["pre_tokenizer"] = byte_level(trim_offsets=False)
    del teacher["pre_tokenizer"]["use_regex"]  # its default is true
    assert compare(tokenizer(), teacher).size == 11


def test_an_empty_normaliser_sequence_is_none(compare):
    empty = {"type": "Sequence", "normalizers": []}
    assert compare(tokenizer() | {"normalizer": None}, tokenizer() | {"normalizer": empty}).size == 11


def test_every_difference_is_in_one_message(compare):
    with pytest.raises(PairMismatch, match="different bytes.*number of merges.*normalisers"):
        compare(tokenizer(), tokenizer(words=WORDS[:7], merges=MERGES[:2]) | {"normalizer": None})


def test_padding_rows_of_a_gguf_file_are_no_tokens(compare):
    student = tokenizer()
    student["model"]["vocab"] |= {"[PAD11]": 11, "[PAD12]": 12}
    assert compare(student, tokenizer()).size == 11


def test_byte_fallback_pieces(compare):
    words = ["<0x0A>", "▁", "a", "▁a"]
    spec = tokenizer(words=words, merges=[["▁", "a"]]) | {"pre_tokenizer": None, "decoder": {"type": "ByteFallback"}}
    teacher = copy.deepcopy(spec)
    teacher["model"]["vocab"] = {"<0x0B>": 0, "▁": 1, "a": 2, "▁b": 3}
    ids = r"id 0: b'\\n' \(student\), b'\\x0b' \(teacher\), id 3: b' a' \(student\), b' b' \(teacher\)"
    with pytest.raises(PairMismatch, match="2 ids .* " + ids):
        compare(spec, teacher)


def test_unigram_scores_are_compared(compare):
    def unigram(score):
        model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", score]]}
        return tokenizer(words=WORDS[:2], names=()) | {"model": model}

    with pytest.raises(PairMismatch, match=r"1 piece scores differ: #1: -1.0 \(student\), -2.0 \(teacher\)"):
        compare(unigram(-1.0), unigram(-2.0))


def test_the_kind_of_tokenizer_is_compared(compare):
    pieces = tokenizer(merges=[])
    words = pieces | {"model": {"type": "WordLevel", "vocab": pieces["model"]["vocab"], "unk_token": "a"}}
    with pytest.raises(PairMismatch, match=r"tokenizer models: BPE \(student\), WordLevel \(teacher\)$"):
        compare(pieces, words)


def test_ids_without_a_row_in_the_students_output_are_not_valid(save):
    student = save("student", tokenizer(), config={"vocab_size": 10})
    assert check_same_vocabulary(student, save("teacher", tokenizer())).size == 10


def test_a_teacher_with_too_few_rows_is_refused(save):
    teacher = save("teacher", tokenizer(), config={"text_config": {"vocab_size": 10}})
    with pytest.raises(PairMismatch, match="output has 10 rows, the student's tokenizer defines ids to 10"):
        check_same_vocabulary(save("student", tokenizer()), teacher)


def test_rows_beyond_the_tokenizer_are_padding(save):
    student, teacher = (save(name, tokenizer(), config={"vocab_size": 64}) for name in ("student", "teacher"))
    assert check_same_vocabulary(student, teacher).size == 11


def test_without_tokenizer_json_transformers_loads_the_tokenizer(save):
    reference = save("reference", tokenizer(names=()))
    plain = tokenizer(names=())["model"]
    folder = save("student", plain["vocab"], config={"model_type": "gpt2"}, tokenizer_config={})
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(PairMismatch) as raised:  # GPT-2 has no NFC normaliser; ids and merges are the same
        check_same_vocabulary(folder, reference)
    assert "normalisers" in str(raised.value) and "bytes" not in str(raised.value) and "merges" not in str(raised.value)


def test_an_unknown_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidParameter, match="no-such-folder"):
        check_same_vocabulary(tmp_path / "no-such-folder", tmp_path / "no-such-folder")


def test_a_checkpoint_without_a_tokenizer_is_named(save, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(InvalidParameter, match=r"checkpoint: got '.*empty'; allowed: one with a tokenizer\.json"):
        check_same_vocabulary(tmp_path / "empty", save("teacher", tokenizer()))


def test_the_pairs_that_the_servers_of_the_tests_run():
    assert check_same_vocabulary(*paths("plain")) == SharedVocabulary(size=TOKENIZER_SIZE)
    assert check_same_vocabulary(*paths("padded")) == SharedVocabulary(size=TOKENIZER_SIZE)
    with pytest.raises(PairMismatch, match=r"2 ids .*b' the' \(student\), b' of' \(teacher\)"):
        check_same_vocabulary(*paths("mismatch_ids"))
    with pytest.raises(PairMismatch, match="pre-tokenisers differ"):
        check_same_vocabulary(*paths("mismatch_split"))


def test_a_vocabulary_of_qwens_size_compares_in_seconds(save):
    """Qwen3's ids, the student with and the teacher without <think> and </think>, its last two.

    Limit 10 s; it takes 1 to 2 s on two shared cores, and the limit keeps a busy machine from failing it.
    """
    spec = json.loads(qwen_tokenizer().to_str())
    student = save("student", spec)
    teacher = save("teacher", spec | {"added_tokens": spec["added_tokens"][:-2]})
    start = time.monotonic()
    assert check_same_vocabulary(student, teacher) == SharedVocabulary(151_669, student_only=(151_667, 151_668))
    assert time.monotonic() - start < 10


def paths(variant):
    pair = build_pair(variant)
    return pair.student, pair.teacher
