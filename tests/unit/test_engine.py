"""One DeepSpeed update of every ZeRO stage, on one and two processes, against plain PyTorch on all logits at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sglang_trb import align_eos
from sglang_trb.launch.local_server import free_port
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.pair.pair import Pair
from sglang_trb.wire.record import Support, TokenStatistics
from tests.pairs import TOKENIZER_SIZE, build_pair
from trainer.config.run import Optimisation
from trainer.learner.batches import Weighted, collate, shard_by_tokens, shard_rollouts
from trainer.losses.reverse_kl import ReverseKL, reverse_kl
from trainer.rollouts.rollout import Rollout, RolloutKey

VOCABULARY = Pair("student", "teacher", TOKENIZER_SIZE, StopAlignment((2006,), (2008,), 2006))
SETTINGS = {"learning_rate": 1e-3, "warmup_steps": 4, "micro_batch_size": 2, "max_grad_norm": 0.1}
UPDATES = 3


@pytest.fixture(scope="module")
def checkpoint():
    """Of the student. All that a process would import in its seconds is imported here, once, and not in each fork."""

    import trainer.learner.engine  # noqa: F401

    path = str(build_pair("plain").student)
    AutoModelForCausalLM.from_pretrained(path)
    return path


def make_rollouts(count=7):
    rng = np.random.default_rng(0)
    rollouts = []
    for i in range(count):
        length = 3 + 2 * i
        ids = np.stack([rng.choice(2000, 16, replace=False) for _ in range(length)]).astype(np.int32)
        q = np.log(rng.dirichlet(np.ones(17), length)[:, :16]).astype(np.float32)
        rollouts.append(
            Rollout(
                key=RolloutKey(0, i, 0),
                weight_version="",
                finish="stop",
                prompt_ids=rng.integers(0, 2000, 4 + i).astype(np.int32),
                token_ids_T=rng.integers(0, 2000, length).astype(np.int32),
                tokens=TokenStatistics.of(rng.random(length, np.float32) for _ in TokenStatistics.names()),
                support=Support(ids, q, q),
            )
        )
    return rollouts


def weighted():
    """Of seven rollouts of 3, 5, … 15 tokens."""
    return [Weighted(rollout, np.ones(len(rollout), np.float32)) for rollout in make_rollouts()]


def reference(checkpoint, dtype=torch.float32, updates=UPDATES, counts=(1.0,) * 7):
    """Weights, losses and gradient norms of some steps, a rollout at a time, without DeepSpeed and without chunks.

    The model computes in ``dtype``; gradients are summed, and weights kept, in float32. A token of a rollout counts as
    much as ``counts`` says.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).train()
    masters = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(masters.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    rollouts = make_rollouts()
    tokens = sum(len(rollout) for rollout in rollouts)
    losses, norms = [], []
    for step in range(updates):
        for master in masters.values():
            master.grad = torch.zeros_like(master)
        losses.append(0.0)
        for rollout, count in zip(rollouts, counts, strict=True):
            loss = loss_sum(model, rollout) * count / tokens
            loss.backward()
            losses[-1] += loss.item()
            for name, p in model.named_parameters():
                masters[name].grad += p.grad
                p.grad = None
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 - np.cos(np.pi * (step + 1) / 4))
        norms.append(float(torch.nn.utils.clip_grad_norm_(masters.values(), 0.1)))
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(masters[name])
    return {name: p.detach().float() for name, p in model.named_parameters()}, losses, norms


def loss_sum(model, rollout):
    ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.token_ids_T]).astype(np.int64))
    start = len(rollout.prompt_ids) - 1
    logits = model(ids[None]).logits[0, start : start + len(rollout), :TOKENIZER_SIZE].float()
    alignment = VOCABULARY.alignment
    stops = {"canonical_id": alignment.canonical_id, "masked_ids": alignment.masked_ids}
    log_probs = align_eos(logits.log_softmax(1), own_ids=alignment.student_ids, **stops)
    chosen = log_probs.gather(1, torch.from_numpy(rollout.support.ids.astype(np.int64)))
    return reverse_kl(chosen, torch.from_numpy(rollout.support.teacher_logprob), "surrogate").sum()


def worker(rank, world, port, case, queue):
    """One process of a run; with a folder, the state goes through a checkpoint after the first update."""
    try:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")
        torch.set_num_threads(1)
        from trainer.learner.engine import TrainEngine
        from trainer.learner.processes import Processes
        from trainer.learner.student import Student

        processes = Processes()
        settings = Optimisation(zero_stage=case.stage, **SETTINGS)

        def make_engine():
            dtype = torch.bfloat16 if case.bf16 else torch.float32
            student = Student(case.checkpoint, VOCABULARY, dtype=dtype, chunk=5)
            return TrainEngine(student, settings, ReverseKL(), processes, bf16=case.bf16)

        engine = make_engine()
        tokens = sum(len(w.rollout) for w in weighted())
        updates = []
        for step in range(case.updates):
            shard = [collate(part) for part in processes.scatter(case.shards(step))]
            brought = _poisoned(shard) if step == case.poison and rank == 0 else shard
            updates.append(engine.update(brought * case.copies, tokens * case.copies, step))
            if case.resume_folder is not None and step == 0:
                engine.save(case.resume_folder)
                for path in case.resume_folder.rglob(case.lose or "nothing"):
                    path.unlink()
                engine = make_engine()
                engine.load(case.resume_folder)
        weights = engine.weights()
        queue.put((rank, updates, weights and {name: w.float().numpy() for name, w in weights.items()}, None))
        processes.leave()
    except BaseException:
        queue.put((rank, None, None, traceback.format_exc()))


@dataclasses.dataclass(frozen=True)
class Case:
    """A run; ``lose``: files of the checkpoint to lose; ``copies``: of the rollouts within an update; ``tokens``: of a
    micro-batch in each update, instead of two sequences; ``poison``: the step in which one process's gradient is NaN.
    """

    checkpoint: str
    stage: int
    world: int
    bf16: bool = False
    resume_folder: Path | None = None
    lose: str | None = None
    copies: int = 1
    aggregation: str = "token_mean"
    tokens: tuple[int, ...] = ()
    updates: int = UPDATES
    poison: int | None = None

    def shards(self, step):
        """Every process's micro-batches."""
        by_size = shard_rollouts(weighted(), self.world, 2, self.aggregation)
        if not self.tokens:
            return by_size
        every = [w for shard in by_size for part in shard for w in part]
        return shard_by_tokens(every, self.world, self.tokens[step])


def _poisoned(shard):
    weight_N = shard[0].position_weight_N.clone()
    weight_N[0] = float("nan")
    return [dataclasses.replace(shard[0], position_weight_N=weight_N), *shard[1:]]


def run(case):
    context = multiprocessing.get_context("fork")
    queue, port = context.Queue(), free_port()
    arguments = [(rank, case.world, port, case, queue) for rank in range(case.world)]
    workers = [context.Process(target=worker, args=a) for a in arguments]
    for process in workers:
        process.start()
    results = sorted((queue.get(timeout=120) for _ in workers), key=lambda result: result[0])
    for process in workers:
        process.join()
    assert not any(result[3] for result in results), "".join(result[3] or "" for result in results)
    return results


@pytest.mark.parametrize(("stage", "world"), [(0, 1), (1, 1), (3, 1), (0, 2), (2, 2), (3, 2)])
def test_the_update_is_that_of_plain_pytorch(checkpoint, stage, world):
    want, losses, norms = reference(checkpoint)
    results = run(Case(checkpoint, stage, world))
    for _, updates, _, _ in results:
        assert [u.loss for u in updates] == pytest.approx(losses, rel=1e-4)
        assert [u.grad_norm for u in updates] == pytest.approx(norms, rel=1e-3)
        rates = [1e-3 * 0.5 * (1 - np.cos(np.pi * (k + 1) / 4)) for k in range(UPDATES)]
        assert [u.learning_rate for u in updates] == pytest.approx(rates)
    weights = results[0][2]
    assert all(result[2] is None for result in results[1:])
    assert weights.keys() == want.keys()
    # Adam divides by the gradient's size: where that is rounding alone, a step may differ by its whole length.
    differ = torch.cat([(torch.from_numpy(weights[name]) - want[name]).abs().flatten() for name in want])
    assert differ.max() < 2.5e-3 and (differ > 2e-5).float().mean() < 1e-3


TOKENS = (19, 30, 1000)
"""Of a micro-batch, an update each. Seven, six and four of them hold sequences of 7, 10, … 25 tokens."""


@pytest.mark.parametrize(("stage", "world"), [(0, 1), (1, 1), (0, 2), (2, 2), (3, 2)])
def test_the_update_does_not_depend_on_how_tokens_are_grouped(checkpoint, stage, world):
    """Another number of micro-batches at every step; of eight on two processes one is empty."""
    want, losses, norms = reference(checkpoint)
    case = Case(checkpoint, stage, world, tokens=TOKENS)
    assert [sum(map(len, case.shards(step))) for step in range(3)] == ([7, 6, 4] if world == 1 else [8, 6, 4])
    results = run(case)
    for _, updates, _, _ in results:
        assert [u.loss for u in updates] == pytest.approx(losses, rel=1e-4)
        assert [u.grad_norm for u in updates] == pytest.approx(norms, rel=1e-3)
        assert all(update.padding <= 0.1 for update in updates)
    differ = torch.cat([(torch.from_numpy(results[0][2][name]) - want[name]).abs().flatten() for name in want])
    assert differ.max() < 2.5e-3 and (differ > 2e-5).float().mean() < 1e-3


@pytest.mark.parametrize("tokens", TOKENS)
def test_gradients_in_float64_do_not_depend_on_how_tokens_are_grouped(checkpoint, tokens):
    from trainer.learner.student import Student

    student = Student(checkpoint, VOCABULARY, dtype=torch.float64, chunk=5)

    def gradients(parts):
        student.zero_grad()
        for part in parts:
            batch = collate(part)
            lengths = (batch.prompt_lengths_B, batch.response_lengths_B)
            log_probs_NK, _ = student(batch.input_ids_BT, *lengths, batch.support_ids_NK)
            reverse_kl(log_probs_NK, batch.teacher_logprob_NK.double(), "surrogate").sum().backward()
        return {name: parameter.grad.clone() for name, parameter in student.named_parameters()}

    alone = gradients([[w] for w in weighted()])
    together = gradients(part for shard in shard_by_tokens(weighted(), 2, tokens) for part in shard)
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("together", [(), TOKENS])
def test_the_mean_of_micro_batches_is_that_of_plain_pytorch(checkpoint, together):
    """Two processes: rollouts 0 2, 4 6 and 1 3, 5 are the micro-batches; all 63 tokens are of seven sequences. So they
    are where other sequences go through a forward together.
    """
    tokens = [3, 5, 7, 9, 11, 13, 15]
    counts = [0.0] * 7
    for part in ([0, 2], [4, 6], [1, 3], [5]):
        for i in part:
            counts[i] = 63 * len(part) / (7 * sum(tokens[j] for j in part))
    want, losses, norms = reference(checkpoint, counts=counts)
    for _, updates, weights, _ in run(Case(checkpoint, 2, 2, aggregation="micro_batch_mean", tokens=together)):
        assert [u.loss for u in updates] == pytest.approx(losses, rel=1e-4)
        assert [u.grad_norm for u in updates] == pytest.approx(norms, rel=1e-3)
        for name in weights or ():
            assert (torch.from_numpy(weights[name]) - want[name]).abs().mean() < 2e-6


@pytest.mark.parametrize(("stage", "world"), [(1, 2), (2, 1), (3, 2)])
def test_the_update_in_bfloat16(checkpoint, stage, world):
    """The forward's rounding, a share of 2^-9 an operation, is in everything."""
    want, losses, norms = reference(checkpoint, torch.bfloat16)
    results = run(Case(checkpoint, stage, world, bf16=True))
    for _, updates, _, _ in results:
        assert [u.loss for u in updates] == pytest.approx(losses, rel=2e-2)
        assert [u.grad_norm for u in updates] == pytest.approx(norms, rel=2e-2)
    differ = torch.cat([(torch.from_numpy(results[0][2][name]) - want[name]).abs().flatten() for name in want])
    assert differ.mean() < 2e-4, "of three steps of up to 9e-4"


@pytest.mark.parametrize("stage", [1, 2])
def test_bfloat16_gradients_are_summed_in_float32(checkpoint, stage):
    """Sixty-four times the same rollouts are the same update; summed in bfloat16 the norm would be off by 0.8%."""
    once, often = (run(Case(checkpoint, stage, 1, bf16=True, copies=n, updates=1))[0][1][0] for n in (1, 64))
    assert often.loss == pytest.approx(once.loss, rel=1e-6)
    assert often.grad_norm == pytest.approx(once.grad_norm, rel=2e-4)


@pytest.mark.parametrize(
    ("stage", "world", "bf16", "tokens"),
    [(0, 1, False, ()), (3, 2, False, ()), (1, 2, True, ()), (0, 1, False, TOKENS), (3, 2, True, TOKENS)],
)
def test_going_on_from_a_checkpoint_is_bit_identical(checkpoint, stage, world, bf16, tokens, tmp_path):
    straight = run(Case(checkpoint, stage, world, bf16, tokens=tokens))
    resumed = run(Case(checkpoint, stage, world, bf16, tmp_path, tokens=tokens))
    assert straight[0][1] == resumed[0][1]
    assert all(np.array_equal(straight[0][2][name], resumed[0][2][name]) for name in straight[0][2])


@pytest.mark.parametrize(("stage", "world"), [(0, 1), (3, 2)])
def test_a_gradient_that_is_not_finite_is_an_update_that_was_not_made(checkpoint, stage, world):
    """On all processes, though one alone has it: weights, moments and learning rate stay as they were."""
    want, losses, norms = reference(checkpoint, updates=2)
    results = run(Case(checkpoint, stage, world, poison=1))
    for _, updates, _, _ in results:
        assert [update.applied for update in updates] == [True, False, True]
        assert not np.isfinite(updates[1].grad_norm)
        assert [updates[0].loss, updates[2].loss] == pytest.approx(losses, rel=1e-4)
        assert [updates[0].grad_norm, updates[2].grad_norm] == pytest.approx(norms, rel=1e-3)
        assert updates[1].learning_rate == updates[2].learning_rate
    differ = torch.cat([(torch.from_numpy(results[0][2][name]) - want[name]).abs().flatten() for name in want])
    assert differ.max() < 2.5e-3 and (differ > 2e-5).float().mean() < 1e-3


def test_a_token_without_probability_on_both_sides_is_no_drift():
    from trainer.learner.engine import drift

    now, then = torch.tensor([-1.0, -torch.inf, -torch.inf]), torch.tensor([-1.5, -torch.inf, -2.0])
    assert drift(now, then).tolist() == [0.5, 0.0, torch.inf]


@pytest.mark.parametrize(("stage", "lose"), [(0, "*model_states.pt"), (1, "*model_states.pt"), (1, "*optim_states.pt")])
def test_a_checkpoint_with_a_missing_file_is_named(checkpoint, stage, lose, tmp_path):
    with pytest.raises(AssertionError, match=r"CheckpointBroken: .* cannot be loaded \(remove"):
        run(Case(checkpoint, stage, 1, resume_folder=tmp_path, lose=lose))
