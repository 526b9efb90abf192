"""The student against transformers' own forward of each sequence alone, without padding and with all logits.

Legend: _B sequences, _T padded length, _N response tokens, _K asked ids.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Glm4MoeConfig,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from sglang_trb import align_eos
from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.pair.pair import Pair
from trainer.learner.student import Student

SIZE, ROWS, K = 50, 56, 5  # six rows of padding
VOCABULARY = Pair("student", "teacher", SIZE, StopAlignment((3, 7), (5, 7), 7))
PROMPTS, RESPONSES = (4, 1, 6, 1), (3, 8, 1, 0)
TOLERANCE = 2e-5
"""Nats: float32, logits of size 4 after two layers; padding changes the order of sums."""

TINY = {"vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def save(config, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, all laws would be flat
            parameter.mul_(20.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    return str(folder)


EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CHECKPOINTS = {
    "tied": Qwen3Config(**TINY, **HEADS, head_dim=16, tie_word_embeddings=True),
    "untied": Qwen3Config(**TINY, **HEADS, head_dim=16, tie_word_embeddings=False),
    "experts": Qwen3MoeConfig(**TINY, **HEADS, **EXPERTS, head_dim=16),  # transformers computes with all of them as one
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request, tmp_path_factory):
    return save(CHECKPOINTS[request.param], tmp_path_factory.mktemp("qwen3") / "student")


def batch():
    """Padded sequences; what is in the padding is random too."""
    generator = torch.Generator().manual_seed(1)
    longest = max(p + r for p, r in zip(PROMPTS, RESPONSES, strict=True))
    input_ids_BT = torch.randint(0, SIZE, (len(PROMPTS), longest), generator=generator)
    ids_NK = torch.stack([torch.randperm(SIZE, generator=generator)[:K] for _ in range(sum(RESPONSES))])
    return input_ids_BT, torch.tensor(PROMPTS), torch.tensor(RESPONSES), ids_NK


def plain(model, input_ids_BT, ids_NK):
    """Each sequence by itself; response token t is predicted at the position before it."""
    laws = []
    for ids_T, prompt, response in zip(input_ids_BT, PROMPTS, RESPONSES, strict=True):
        logits_TV = model(ids_T[None, : prompt + response]).logits[0]
        laws.append(logits_TV[prompt - 1 : prompt - 1 + response, :SIZE].double().log_softmax(1))
    alignment = VOCABULARY.alignment
    log_probs_NV = align_eos(
        torch.cat(laws),
        own_ids=alignment.student_ids,
        canonical_id=alignment.canonical_id,
        masked_ids=alignment.masked_ids,
    )
    return log_probs_NV.gather(1, ids_NK), torch.special.entr(log_probs_NV.exp()).sum(1)


def expected_loss(log_probs_NK):
    on = log_probs_NK.isfinite()
    return (log_probs_NK[on] * torch.linspace(-1, 1, int(on.sum()))).sum()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_log_probs_and_gradients_are_those_of_each_sequence_alone(checkpoint, gradient_checkpointing):
    student = Student(
        checkpoint, VOCABULARY, dtype=torch.float32, gradient_checkpointing=gradient_checkpointing, chunk=4
    )
    assert student.causal_lm.is_gradient_checkpointing == gradient_checkpointing
    arguments = batch()
    log_probs_NK, entropy_N = student(*arguments)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    want_NK, want_entropy_N = plain(reference, arguments[0], arguments[3])
    assert torch.equal(log_probs_NK.isfinite(), want_NK.isfinite()) and log_probs_NK.dtype == torch.float32
    torch.testing.assert_close(log_probs_NK.double(), want_NK, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(entropy_N.double(), want_entropy_N, rtol=0, atol=TOLERANCE)
    assert want_entropy_N.std() > 0.1, "the laws differ"

    expected_loss(log_probs_NK).backward()
    expected_loss(want_NK).backward()
    theirs = dict(reference.named_parameters())
    ours = dict(student.named_weights())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        scale = theirs[name].grad.norm() + 1e-6
        assert (parameter.grad - theirs[name].grad).norm() < 1e-4 * scale, name


def saved_weights(student):
    return student.as_saved({name: parameter.detach().clone() for name, parameter in student.named_weights()})


def test_weights_have_their_names_in_the_checkpoint_and_load_again(checkpoint, tmp_path):
    student = Student(checkpoint, VOCABULARY, dtype=torch.float32)
    before = load_file(f"{checkpoint}/model.safetensors")
    loaded = saved_weights(student)
    assert loaded.keys() == before.keys() and all(torch.equal(loaded[name], before[name]) for name in before)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    log_probs_NK, _ = student(*batch())
    expected_loss(log_probs_NK).backward()
    optimizer.step()
    weights = saved_weights(student)
    assert weights.keys() == before.keys()
    assert not torch.equal(weights["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    tied = "lm_head.weight" not in before
    assert (student.causal_lm.lm_head.weight is student.causal_lm.model.embed_tokens.weight) == tied

    student.causal_lm.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    arguments = batch()
    want_NK, _ = plain(again, arguments[0], arguments[3])
    torch.testing.assert_close(student(*arguments)[0].double(), want_NK, rtol=0, atol=TOLERANCE)


def test_buffers_that_a_checkpoint_keeps_are_saved_with_the_weights(tmp_path):
    """The bias that balances experts is no parameter, and a checkpoint without it would be another model."""
    experts = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
    checkpoint = save(Glm4MoeConfig(**TINY, **HEADS, **experts, head_dim=16), tmp_path / "model")
    before = load_file(f"{checkpoint}/model.safetensors")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    before[bias] = torch.arange(4.0)
    save_file(before, f"{checkpoint}/model.safetensors", metadata={"format": "pt"})
    saved = saved_weights(Student(checkpoint, VOCABULARY, dtype=torch.float32))
    assert saved.keys() == before.keys() and all(torch.equal(saved[name], before[name]) for name in before)


def test_the_whole_state_has_transformers_names(checkpoint):
    student = Student(checkpoint, VOCABULARY, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert student.causal_lm.state_dict().keys() == reference.state_dict().keys()


def test_bfloat16_weights_give_float32_log_probs(checkpoint):
    student = Student(checkpoint, VOCABULARY, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    log_probs_NK, entropy_N = student(*batch())
    assert log_probs_NK.dtype == entropy_N.dtype == torch.float32
    expected_loss(log_probs_NK).backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())


def test_a_micro_batch_without_any_response_has_gradients_of_zero(checkpoint):
    student = Student(checkpoint, VOCABULARY, dtype=torch.float32)
    none_B = torch.zeros(2, dtype=torch.int64)
    log_probs_NK, _ = student(torch.zeros(2, 1, dtype=torch.int64), none_B + 1, none_B, torch.zeros(0, K).long())
    log_probs_NK.sum().backward()
    assert log_probs_NK.shape == (0, K)
    assert all(parameter.grad.count_nonzero() == 0 for parameter in student.parameters())


REFUSED = {
    "final_logit_softcapping": Gemma2Config(**TINY, **HEADS, head_dim=16, final_logit_softcapping=30.0),
    "logits_scaling": GraniteConfig(**TINY, **HEADS, logits_scaling=8.0),
    "logit_scale": CohereConfig(**TINY, **HEADS, logit_scale=0.0625),
    "lm_head_multiplier": FalconH1Config(
        **TINY, **HEADS, lm_head_multiplier=0.5, mamba_d_ssm=32, mamba_n_heads=2, mamba_d_head=16, mamba_d_state=8
    ),
    "output head": PhiConfig(**TINY, num_attention_heads=2),
}


@pytest.mark.parametrize("field", REFUSED)
def test_models_whose_logits_are_not_the_heads_output_are_refused(field, tmp_path):
    checkpoint = save(REFUSED[field], tmp_path / "model")
    with pytest.raises(InvalidParameter, match=f"^{field} of '{checkpoint}': got .*; allowed: "):
        Student(checkpoint, VOCABULARY, dtype=torch.float32)


def test_a_scale_of_one_and_another_name_of_the_trunk_are_fine(tmp_path):
    granite = GraniteConfig(**TINY, **HEADS, logits_scaling=1.0)
    gpt2 = GPT2Config(vocab_size=ROWS, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    for name, config in (("granite", granite), ("gpt2", gpt2)):
        checkpoint = save(config, tmp_path / name)
        arguments = batch()
        want_NK, _ = plain(AutoModelForCausalLM.from_pretrained(checkpoint), arguments[0], arguments[3])
        log_probs_NK, _ = Student(checkpoint, VOCABULARY, dtype=torch.float32)(*arguments)
        torch.testing.assert_close(log_probs_NK.double(), want_NK, rtol=0, atol=TOLERANCE)


def test_a_checkpoint_that_could_not_be_pushed_is_refused_before_it_is_loaded(tmp_path):
    config = Qwen3Config(**TINY, **HEADS, head_dim=16, tie_word_embeddings=True)
    folder = tmp_path / "student"
    save(config, folder)
    weights = load_file(folder / "model.safetensors")
    changed = {"model.norm.weight": None, "model.embed_tokens.weight": torch.zeros(8, 32)}
    for name, tensor in changed.items():
        others = {n: w for n, w in weights.items() if n != name} | ({} if tensor is None else {name: tensor})
        save_file(others, folder / "model.safetensors")
        with pytest.raises(InvalidParameter, match=rf"^models.student: got '{folder}'; allowed: .*{name}"):
            Student(str(folder), VOCABULARY, dtype=torch.float32)
    # A head that is not the embeddings, though the configuration says so: transformers trains it, SGLang ignores it.
    save_file(weights | {"lm_head.weight": torch.zeros(ROWS, 32)}, folder / "model.safetensors")
    with pytest.raises(InvalidParameter, match=r"lm_head\.weight differs"):
        Student(str(folder), VOCABULARY, dtype=torch.float32)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidParameter, match=r"pytorch_model\.bin.*save_pretrained"):
        Student(str(folder), VOCABULARY, dtype=torch.float32)
