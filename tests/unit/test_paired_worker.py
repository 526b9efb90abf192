"""Models whose cache is no plain row per token and layer are refused, each by the name of what it has."""

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.configs import FalconH1Config, Qwen3NextConfig
from transformers import LlamaConfig

from sglang_trb.engine.worker.paired_worker import _require_plain_attention
from sglang_trb.errors import PairMismatch


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
