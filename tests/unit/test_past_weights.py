"""The student as it was some updates ago."""

import contextlib

import torch

from trainer.learner.past_weights import PastWeights


def test_the_past_comes_back_and_goes_again():
    module = torch.nn.Linear(3, 2)
    past, seen = PastWeights(module, keep=2), []
    for updates in range(4):
        with torch.no_grad():
            module.weight.fill_(updates)
        past.remember(updates)
        seen.append([kept in past for kept in range(4)])
    assert seen[1:] == [[True, True, False, False], [False, True, True, False], [False, False, True, True]]
    bias = module.bias.clone()
    with contextlib.suppress(ZeroDivisionError), past.restored(2):
        assert module.weight.eq(2).all() and torch.equal(module.bias, bias)
        raise ZeroDivisionError
    assert module.weight.eq(3).all()


def test_nothing_is_kept_where_nothing_is_stale():
    past = PastWeights(torch.nn.Linear(3, 2), keep=0)
    past.remember(0)
    assert 0 not in past
