"""A look at the teacher when a server starts: are its distributions those of a trained model?

SGLang's own means for what runs before the first request, ``--warmups``: `resolve_and_check` adds ours to its list.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_trb.pair.teacher_health import TeacherHealth, look_at
from sglang_trb.wire.params import BlendParams, Return, Rule
from sglang_trb.wire.trace import tokens_of

if TYPE_CHECKING:
    from sglang_trb.engine.manager.tokenizer_manager import TrbTokenizerManager

logger = logging.getLogger(__name__)

WARMUP = "trb_teacher"
_TEXTS = (
    "The capital of France is",
    "Q: What is 12 + 7? A:",
    "def add(a, b):\n    return",
    "Once upon a time there was",
)
_NEW_TOKENS = 32


async def probe_teacher(_: Any, manager: TrbTokenizerManager) -> None:
    """Judge the teacher by its entropies along some responses of the student; the log says what is wrong with it.

    A server of a broken teacher starts nevertheless: random weights are what tests are made of. ``/trb/info`` has the
    verdict, and a trainer refuses to go on.
    """
    if not manager.blends:
        return
    blend = BlendParams(Rule.STUDENT, returned=Return.TOKENS)
    sampling = {"max_new_tokens": _NEW_TOKENS, "temperature": 1.0, "ignore_eos": True, "sampling_seed": 0}
    request = GenerateReqInput(text=[*_TEXTS], sampling_params=sampling | {"custom_params": blend.to_wire()})
    try:
        answers = [output async for output in manager.generate_request(request)][-1]
    except ValueError as error:
        logger.warning("the teacher was not looked at: %s", error)
        return
    found = [answer["meta_info"].get("trb") for answer in answers]
    entropies = [tokens_of(trb).teacher_entropy for trb in found if trb is not None]
    if entropies:
        manager.teacher_health = _said(look_at(np.concatenate(entropies), manager.pair.vocab_size))


def _said(health: TeacherHealth) -> TeacherHealth:
    if health.condition is not None:
        logger.log(logging.ERROR if health.broken else logging.WARNING, health.explained())
    return health
