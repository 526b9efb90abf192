"""What a decode step costs and asks of a device that is not there: no stall of the host, no work for nobody."""

import contextlib
import functools
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.logprob_processor import OutputLogprobProcessor
from sglang.srt.sampling import sampling_batch_info
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_trb.blend import StopAlignment, solver
from sglang_trb.engine import backend
from sglang_trb.engine.worker.batch import TrbSamplingBatchInfo
from sglang_trb.engine.worker.sampler import TrbSampler
from sglang_trb.footprint import step_bytes
from tests.device_watch import DEVICE, DeviceWatch, HostSync

VOCAB = 500
ALIGNMENT = StopAlignment((3, 4), (5, 3), 4)

EXTRAS = {
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 20},
    "min_p": {"min_p": 0.1},
    "temperature": {"temperature": 0.7},
    "logit bias": {"logit_bias": {"7": 2.0}},
    "penalty": {"frequency_penalty": 0.5},
    "min_new_tokens": {"min_new_tokens": 3},
    "support": {"custom_params": {"trb_epsilon": 0.01, "trb_return": "support_both"}},
    "teacher": {"custom_params": {"trb_rule": "teacher"}},
    "skd": {"custom_params": {"trb_rule": "skd", "trb_skd_top_k": 15, "trb_skd_temperature": 0.6}},
    "mixture": {"custom_params": {"trb_rule": "mixture", "trb_mixture_alpha": 0.2}},
    "tiny budget": {"custom_params": {"trb_epsilon": 1e-12}},
}
"""What one request may ask for that its neighbours do not."""

SORTING = {"top_p", "top_k", "min_p", "skd"}


@pytest.fixture(autouse=True)
def blending(monkeypatch):
    execution = SimpleNamespace(
        deterministic=SimpleNamespace(enable_deterministic_inference=False),
        features=SimpleNamespace(enable_custom_logit_processor=False),
        kernel=SimpleNamespace(sampling_backend="trb"),
    )
    monkeypatch.setattr(sampling_batch_info, "get_exec", lambda: execution)
    monkeypatch.setattr(backend, "get_exec", lambda: execution)
    monkeypatch.setattr(solver, "TRIPS", 1)  # the others are the same again


class Batch:
    """As SGLang's scheduler: requests, and their sampling information beside them."""

    def __init__(self, *extras):
        self.device = str(DEVICE)
        self.reqs = [request(i, extra) for i, extra in enumerate(extras)]
        self.info = TrbSamplingBatchInfo.from_schedule_batch(self, VOCAB)

    def keep(self, indices):
        self.reqs = [self.reqs[i] for i in indices]
        self.info.filter_batch(indices, torch.empty(len(indices), dtype=torch.int64, device=DEVICE))

    def merge(self, other):
        self.info.merge_batch(other.info)
        self.reqs += other.reqs


def request(number, extra):
    defaults = {"custom_params": {"trb_epsilon": 0.01}, "sampling_seed": number, "max_new_tokens": 4}
    params = SamplingParams(**(defaults | extra))
    params.normalize(object())
    return SimpleNamespace(
        rid=str(number),
        sampling_params=params,
        return_sampling_mask=False,
        custom_logit_processor=None,
        output_ids=[],
        tokenizer=SimpleNamespace(additional_stop_token_ids=None, eos_token_id=3),
        eos_token_ids={3},
    )


def sampler():
    made = TrbSampler.__new__(TrbSampler)
    torch.nn.Module.__init__(made)
    made.pair = SimpleNamespace(alignment=ALIGNMENT, vocab_size=VOCAB - 7)
    made.output_logprob_processor = OutputLogprobProcessor()
    return made


def decode(batch, return_logprob=False):
    """One decode step as the model runner asks for it, and the copies that SGLang makes of its statistics."""
    count = len(batch.reqs)
    info = batch.info.copy_for_forward()
    info.teacher_logits_BV = torch.empty(count, VOCAB + 12, device=DEVICE)
    output = SimpleNamespace(next_token_logits=torch.empty(count, VOCAB, device=DEVICE))
    positions = torch.empty(count, dtype=torch.int64, device=DEVICE)
    ids = sampler().forward(output, info, return_logprob, [0] * count, [None] * count, positions)
    copied = []
    output.auxiliary_device_output.copy_to_host(lambda x: copied.append(x) or x)
    assert ids.shape == (count,) and [x.shape[0] for x in copied] == [count, count]


def watched(batch, **options):
    with DeviceWatch() as watch:
        decode(batch, **options)
    return watch


def merging(extra):
    """SGLang brings the penalties of both sides to the device when batches merge."""
    return contextlib.nullcontext() if extra in ("penalty", "min_new_tokens") else DeviceWatch()


@functools.cache
def two_plain_rows():
    return watched(Batch({}, {})).operations


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_request_taxes_its_batch_only_while_it_is_there(extra):
    batch, other = Batch({}, {}), Batch({}, EXTRAS[extra])
    with merging(extra):
        batch.merge(other)
    together = watched(batch).operations
    assert together.total() > two_plain_rows().total()
    assert bool(together["sort"]) == (extra in SORTING)
    with DeviceWatch():
        batch.keep([0, 2])
    assert watched(batch).operations == two_plain_rows()


@pytest.mark.parametrize("temperature", [0.0, 1e-7])
def test_a_greedy_request_sorts_nothing(temperature):
    assert watched(Batch({}, {"temperature": temperature})).operations == two_plain_rows()


def test_a_step_with_everything_does_not_wait():
    batch = Batch({}, *EXTRAS.values())
    batch.merge(Batch({"temperature": 0.0}))
    with DeviceWatch() as watch:
        decode(batch, return_logprob=True)
        batch.keep(list(range(3, 12)))
        decode(batch)
    assert watch.peak_bytes <= step_bytes(len(EXTRAS) + 2, VOCAB + 12, "cuda")


@pytest.mark.parametrize(
    "look",
    [
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.cpu,
        torch.Tensor.nonzero,
        bool,
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x[[0]],
        lambda x: x[torch.tensor([0])],
        lambda x: x + torch.ones(1),
        lambda x: torch.ones(1).to(DEVICE) + x,
        torch.Tensor.unique,
    ],
)
def test_the_watch_sees_a_look_at_the_device(look):
    with DeviceWatch(), pytest.raises(HostSync):
        look(torch.empty(1, device=DEVICE))
