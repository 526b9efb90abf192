"""The stream of prompts: the same for all methods, whatever happens, each prompt once an epoch."""

from __future__ import annotations

import dataclasses

import pytest

from trainer.data.prompts import PromptStream, Renderer, UnusablePrompts


@dataclasses.dataclass
class Problem:
    id: str
    question: str


class LetterTokenizer:
    """A token a letter, and a template that shows what it was given."""

    chat_template = "yes"

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, messages, **options):
        shown = "|".join(f"{m['role']}:{m['content']}" for m in messages)
        thinking = options.get("enable_thinking", "default")
        assert (options["add_generation_prompt"], options["tokenize"], options["return_dict"]) == (True, True, False)
        return [ord(letter) for letter in f"{shown}|think={thinking}"]


def text_of(ids):
    return "".join(map(chr, ids))


def stream(count=10, per_step=3, seed=0, **options):
    problems = [Problem(str(i), "x" * (i + 1)) for i in range(count)]
    render = Renderer(LetterTokenizer(), "raw")
    return PromptStream(problems, render, per_step=per_step, seed=seed, **{"max_prompt_tokens": 100} | options)


def test_every_epoch_has_each_prompt_once_in_another_order():
    prompts = stream()
    drawn = [prompt for k in range(10) for prompt in prompts.step(k)]
    assert [prompt.position for prompt in drawn] == list(range(30))
    epochs = [[prompt.problem for prompt in drawn[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed_alone():
    first, again, other = stream(), stream(), stream(seed=1)
    again.step(7)  # asking for a later step first changes nothing
    assert [first.step(k) for k in range(4)] == [again.step(k) for k in range(4)]
    assert [first.step(k) for k in range(4)] != [other.step(k) for k in range(4)]
    assert [prompt.problem for prompt in stream(seed=None).step(1)] == [3, 4, 5]


@pytest.mark.parametrize("seed", [0, None])
def test_a_stream_that_begins_later_has_the_same_prompts_from_there_on(seed):
    """Over the end of an epoch, too: 10 prompts."""
    whole = [prompt for k in range(8) for prompt in stream(seed=seed).step(k)]
    later = stream(seed=seed, first=6)
    assert [prompt for k in range(6) for prompt in later.step(k)] == whole[6:]


def test_unusable_prompts_are_left_out_and_counted():
    prompts = stream(max_prompt_tokens=5)
    assert len(prompts) == 5 and prompts.left_out == {"longer than 5 tokens": 5}
    assert all(len(prompt.token_ids) <= 5 for prompt in prompts.step(0))
    with pytest.raises(UnusablePrompts, match=r"got 2 usable prompts of 10 .*prompts_per_step = 3"):
        stream(max_prompt_tokens=2)
    empty = PromptStream(
        [Problem("0", ""), Problem("1", "y")],
        Renderer(LetterTokenizer(), "raw"),
        max_prompt_tokens=9,
        per_step=1,
        seed=0,
    )
    assert empty.left_out == {"empty": 1}


def test_rendering():
    tokenizer = LetterTokenizer()
    assert text_of(Renderer(tokenizer, "raw")("1+1=")) == "1+1="
    assert text_of(Renderer(tokenizer)("hi")) == "user:hi|think=default"
    assert text_of(Renderer(tokenizer, "chat", "be brief", False)("hi")) == "system:be brief|user:hi|think=False"


def test_raw_prompts_begin_as_the_tokenizer_begins_any_text():
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from tests.pairs import ENDOFTEXT, small_tokenizer

    plain = small_tokenizer()
    with_bos = type(plain).from_str(plain.to_str())
    bos = plain.token_to_id(ENDOFTEXT)
    with_bos.post_processor = TemplateProcessing(single=f"{ENDOFTEXT} $A", special_tokens=[(ENDOFTEXT, bos)])
    ids = plain.encode("one two").ids
    for tokenizer, begin in ((plain, []), (with_bos, [bos])):
        render = Renderer(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "raw")
        assert list(render("one two")) == begin + ids


def test_a_template_that_is_not_there_is_named():
    tokenizer = LetterTokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UnusablePrompts, match=r"data\.template"):
        Renderer(tokenizer, "chat")
    with pytest.raises(UnusablePrompts, match=r"data\.system_prompt"):
        Renderer(tokenizer, "raw", "be brief")
