"""Models whose cache is no plain row per token and layer are refused, each by the name of what it has."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.configs import FalconH1Config, Qwen3NextConfig
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.sampling.sampling_params import SamplingParams
from transformers import LlamaConfig

from sglang_trb.engine.scheduling import scheduler
from sglang_trb.engine.scheduling.scheduler import prefix_namespace
from sglang_trb.engine.worker.batch import BlendColumns, TrbSamplingBatchInfo
from sglang_trb.engine.worker.paired_worker import PairedWorker, _require_plain_attention
from sglang_trb.errors import NotInForce, PairMismatch


def runner(config: Any = None, **features: bool) -> Any:
    config = LlamaConfig() if config is None else config
    model_config = SimpleNamespace(hf_config=config, hf_text_config=config, linear_attn_registry_result=None)
    return SimpleNamespace(**{"is_hybrid_swa": False, "use_mla_backend": False} | features, model_config=model_config)


def test_plain_attention_is_paired() -> None:
    _require_plain_attention("teacher", runner())


@pytest.mark.parametrize(
    ("model", "feature"),
    [
        (runner(is_hybrid_swa=True), "sliding-window attention"),
        (runner(use_mla_backend=True), "multi-head latent attention"),
        (runner(Qwen3NextConfig()), "recurrent"),
        (runner(FalconH1Config()), "recurrent"),
    ],
)
def test_another_cache_is_refused_by_name(model: Any, feature: str) -> None:
    with pytest.raises(PairMismatch, match=f"the teacher uses {feature}"):
        _require_plain_attention("teacher", model)


ALONE = {"trb_rule": "student", "trb_return": "none"}
BLENDED = {"trb_epsilon": 0.1, "trb_return": "none"}
MEASURED = {"trb_rule": "student", "trb_return": "summary"}


def req(blend: dict[str, Any], key: str | None = None) -> Any:
    params = SamplingParams(custom_params=blend, sampling_seed=1)
    return SimpleNamespace(sampling_params=params, extra_key=key, rid="r")


def info(*blends: dict[str, Any]) -> TrbSamplingBatchInfo:
    found = TrbSamplingBatchInfo.__new__(TrbSamplingBatchInfo)
    found.blend = BlendColumns.from_requests([req(blend) for blend in blends], "cpu")
    found.teacher_logits_BV = None
    return found


@pytest.mark.parametrize(
    ("blends", "runs"),
    [([ALONE, ALONE], False), ([ALONE, BLENDED], True), ([MEASURED], True), ([BLENDED], True)],
)
def test_the_teacher_runs_where_it_has_a_part(
    monkeypatch: pytest.MonkeyPatch, blends: list[dict[str, Any]], runs: bool
) -> None:
    monkeypatch.setattr(TpModelWorker, "forward_batch_generation", lambda self, batch: "result")
    worker: Any = PairedWorker.__new__(PairedWorker)
    seen = []
    worker.teacher = SimpleNamespace(logits=lambda batch: seen.append(batch) or torch.zeros(len(blends), 4))
    batch: Any = SimpleNamespace(sampling_info=info(*blends))
    assert worker.forward_batch_generation(batch) == "result"
    assert bool(seen) is runs is (batch.sampling_info.teacher_logits_BV is not None)


def test_what_the_teacher_says_of_prefixes_it_has_not_seen_is_not_read() -> None:
    student, teacher = torch.ones(2, 4), torch.full((2, 4), float("nan"))
    assert info(ALONE, ALONE).take_teacher_logits(student) is student
    mixed = info(ALONE, BLENDED)
    mixed.teacher_logits_BV = teacher
    taken = mixed.take_teacher_logits(student)
    assert taken[0].tolist() == [0.0] * 4 and taken[1].isnan().all() and teacher.isnan().all()
    with pytest.raises(NotInForce, match="without the teacher's logits"):
        mixed.take_teacher_logits(student)


def test_rows_keep_their_part_as_requests_come_and_go() -> None:
    merged = info(ALONE, BLENDED).blend.merged(info(ALONE).blend)
    assert merged.alone_B.tolist() == [True, False, True] and merged.needs_teacher()
    left = merged.filtered([2, 0], torch.tensor([2, 0]))
    assert left.alone_B.tolist() == [True, True] and not left.needs_teacher()


def test_no_key_of_a_client_leads_to_prefixes_that_the_teacher_has_not_seen() -> None:
    keys = [None, "", "x", "student alone|", "student alone|x", "pair|student alone|", "|"]
    alone, paired = ({prefix_namespace(req(blend, key)) for key in keys} for blend in (ALONE, BLENDED))
    assert not alone & paired and len(alone) == len(paired) == len(keys) - 1, "None and '' are one"
    assert prefix_namespace(req(BLENDED)) is None


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize(("blend", "key"), [(ALONE, "student alone|x"), (BLENDED, "pair|x")])
def test_a_request_keeps_its_namespace_however_often_it_is_queued(
    monkeypatch: pytest.MonkeyPatch, blend: dict[str, Any], key: str, refused: bool
) -> None:
    """Preempted requests, and those that a pause held back, are queued as if they were new."""
    queued, rehearsed = [], []
    monkeypatch.setattr(Scheduler, "_add_request_to_queue", lambda self, req, is_retracted: queued.append(req))
    monkeypatch.setattr(scheduler, "rehearse", lambda req, vocab_size: rehearsed.append(req))
    monkeypatch.setattr(scheduler.TrbScheduler, "blends", True)
    one: Any = scheduler.TrbScheduler.__new__(scheduler.TrbScheduler)
    one.model_config = SimpleNamespace(vocab_size=4)
    asked = req(blend, "x")
    asked.to_finish = "refused" if refused else None
    for count in (1, 2):
        one._add_request_to_queue(asked)
        assert asked.extra_key == key and len(queued) == count and bool(rehearsed) is not refused
