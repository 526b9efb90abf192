"""The tiny pairs are what their docstring says: other tests rest on it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import pairs

PROMPT = [{"role": "user", "content": "What is the sum of 3 and 4?"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


def prompt_ids(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, return_tensors="pt").input_ids


@torch.no_grad()
def log_probs(checkpoint, ids):
    """Next-token log-probabilities at every position, ``[T, V]``."""
    return AutoModelForCausalLM.from_pretrained(checkpoint)(ids).logits[0].log_softmax(-1)


def test_plain_pair_is_peaked_and_about_a_nat_apart(root):
    pair = pairs.build_pair("plain", root)
    torch.manual_seed(0)
    ids = AutoModelForCausalLM.from_pretrained(pair.student).generate(
        prompt_ids(pair.student), do_sample=True, top_k=0, max_new_tokens=200, eos_token_id=-1
    )
    p, q = log_probs(pair.student, ids), log_probs(pair.teacher, ids)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    entropy = -(p.exp() * p).sum(-1).mean()
    assert 0.5 < kl < 2.0
    assert entropy < 0.5 * torch.tensor(float(pairs.TOKENIZER_SIZE)).log()


def test_wide_pair_is_a_real_pairs_kl_apart_and_depends_on_its_context(root):
    """Else a check of a GPU server against it could not tell right from wrong."""
    pair = pairs.build_pair("wide", root)
    ids = torch.randint(10, 1900, (1, 96), generator=torch.Generator().manual_seed(3))
    laws = [log_probs(checkpoint, ids) for checkpoint in (pair.student, pair.teacher)]
    p, q = laws
    assert 0.1 < (p.exp() * (p - q)).sum(-1).mean() < 1.0
    assert 0.1 < (q.exp() * (q - p)).sum(-1).mean() < 1.0
    for checkpoint, law in zip((pair.student, pair.teacher), laws, strict=True):
        assert 1.0 < -(law.exp() * law).sum(-1).mean() < 4.0
        elsewhere = torch.cat([ids[:, 48:].flip(1), ids[:, 48:]], 1)
        moved = log_probs(checkpoint, elsewhere)[60:]
        assert (law[60:].exp() * (law[60:] - moved)).sum(-1).mean() > 0.03


def test_small_tokenizer_has_the_documented_ids(root):
    tokenizer = AutoTokenizer.from_pretrained(pairs.build_pair("plain", root).student)
    assert len(tokenizer) == pairs.TOKENIZER_SIZE
    assert tokenizer.convert_tokens_to_ids(list(pairs.SPECIAL_TOKENS)) == [2006, 2007, 2008, 2009, 2010]
    text = "Hello the sum of 3, naïve 漢字\n\n 12.5% 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("variant", "student_stop", "teacher_stop"), [("eos", 2006, 2008), ("qwen_ids", 151643, 151645)]
)
def test_eos_pair_differs_in_the_stop_id_alone(root, variant, student_stop, teacher_stop):
    pair = pairs.build_pair(variant, root)
    ids = prompt_ids(pair.student)  # holds <|im_end|>
    p, q = log_probs(pair.student, ids), log_probs(pair.teacher, ids)
    swapped = p.clone()
    swapped[:, [student_stop, teacher_stop]] = p[:, [teacher_stop, student_stop]]
    torch.testing.assert_close(q, swapped, rtol=0, atol=1e-5)
    as_student_stop = ids.masked_fill(ids == teacher_stop, student_stop)
    assert torch.equal(log_probs(pair.student, as_student_stop), p)
    for path, stop in ((pair.student, student_stop), (pair.teacher, teacher_stop)):
        assert AutoModelForCausalLM.from_pretrained(path).generation_config.eos_token_id == stop
        assert AutoTokenizer.from_pretrained(path).eos_token_id == stop


def test_poison_reaches_only_prompts_that_hold_it(root):
    pair = pairs.build_pair("poison", root)
    for path, poison in ((pair.student, 2009), (pair.teacher, 2010)):
        ids = prompt_ids(path)
        clean = log_probs(path, ids)
        assert clean.isfinite().all()
        assert clean[:, [2009, 2010]].max() < -20  # never drawn
        poisoned = log_probs(path, torch.cat([ids, torch.tensor([[poison]])], 1))
        assert poisoned[-1].isnan().all()


def test_mismatched_tokenizers_read_the_same_text_differently(root):
    for variant, text in (("mismatch_ids", "the sum of the"), ("mismatch_split", "12")):
        pair = pairs.build_pair(variant, root)
        student, teacher = (AutoTokenizer.from_pretrained(path) for path in (pair.student, pair.teacher))
        if variant == "mismatch_ids":
            assert student.encode(" " + text) != teacher.encode(" " + text)
        else:
            cut = [t.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) for t in (student, teacher)]
            assert cut[0] != cut[1]


def test_builds_are_equal_and_found_again(root, tmp_path):
    first, second = pairs.build_pair("plain", root), pairs.build_pair("plain", tmp_path)
    assert first == pairs.build_pair("plain", root)
    assert sorted(p.name for p in tmp_path.iterdir()) == [second.student.parent.name]  # nothing left aside
    for ours, theirs in ((first.student, second.student), (first.teacher, second.teacher)):
        assert {f.name: f.read_bytes() for f in ours.iterdir()} == {f.name: f.read_bytes() for f in theirs.iterdir()}


def test_unknown_variant_is_refused(root):
    with pytest.raises(ValueError, match="allowed: plain"):
        pairs.build_pair("nope", root)
