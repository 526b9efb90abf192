"""The student as it is trained: a causal language model that answers with log-probabilities, never with logits.

Legend: _B sequences, _T padded length, _N response tokens of all sequences one after the other, _H hidden size,
_K asked ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from sglang_trb.checkpoints.model_tensors import ModelTensors, own_tensors
from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.pair import Pair
from trainer.learner.log_probs import DEFAULT_CHUNK, gathered_log_probs
from trainer.learner.student_folder import STUDENT_FIELD, check_student

_LOGIT_CHANGES = (
    "final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap", "logits_scaling", "logit_scale",
    "lm_head_multiplier",
)  # fmt: skip
"""Config fields of models whose logits are not h Wᵀ; all that transformers 5.12.1 has."""


class LogProbHead(nn.Linear):
    """The output head. Its weight is used in its own forward only, where ZeRO-3 has it gathered."""

    def __init__(self, head: nn.Linear, pair: Pair, chunk: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight = head.weight  # the same parameter: it may be tied to the embeddings
        self.register_parameter("bias", None)
        self._pair, self._chunk = pair, chunk

    def forward(self, hidden_NH: torch.Tensor, ids_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return gathered_log_probs(hidden_NH, self.weight, ids_NK, self._pair, self._chunk)


class Student(nn.Module):
    """A Hugging Face causal language model with `LogProbHead`.

    Args:
        checkpoint: folder or Hugging Face id.
        pair: its valid ids and stop ids.
        dtype: of the weights.
        gradient_checkpointing: recompute the layers in the backward pass.
        chunk: positions whose logits exist at a time.

    Raises:
        InvalidParameter: a model whose logits are not a plain linear map of its hidden states: capped, scaled, with a
            bias, or without an ``lm_head``; or a checkpoint as `check_student` refuses it.
    """

    def __init__(
        self,
        checkpoint: str,
        pair: Pair,
        *,
        dtype: torch.dtype,
        gradient_checkpointing: bool = False,
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        super().__init__()
        tensors = check_student(checkpoint)
        self.causal_lm = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa")
        self.causal_lm.config.use_cache = False
        _check_plain_head(checkpoint, self.causal_lm)
        _check_saved(checkpoint, self, tensors)
        self.causal_lm.lm_head = LogProbHead(self.causal_lm.lm_head, pair, chunk)
        if gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.causal_lm.train()

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        prompt_lengths_B: torch.Tensor,
        response_lengths_B: torch.Tensor,
        ids_NK: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the asked ids at each response token's position, and the distribution's entropy.

        Args:
            input_ids_BT: int64, prompt then response, padded on the right: attention is causal, so that what is in the
                padding does not matter.
            prompt_lengths_B, response_lengths_B: int64; prompts have at least one token.
            ids_NK: int64; N is the sum of ``response_lengths_B``.

        Returns:
            log_probs_NK with gradient, entropy_N without, as `gathered_log_probs`; response token t is predicted from
            the hidden state at prompt length - 1 + t.
        """
        hidden_BTH = self.causal_lm.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        first_B1 = prompt_lengths_B[:, None] - 1  # this position predicts the first response token
        position_1T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)[None, :]
        predicts_BT = (position_1T >= first_B1) & (position_1T < first_B1 + response_lengths_B[:, None])
        return self.causal_lm.lm_head(hidden_BTH[predicts_BT], ids_NK)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """`own_tensors` under their names in transformers' model: a tied output head is the embeddings."""
        yield from own_tensors(self.causal_lm).items()

    def as_saved(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole weights by `named_weights`' names → as the checkpoint has them, by name and shape.

        They differ where transformers computes with several tensors as one: the experts of a layer, for example. What
        it did when it loaded them is undone, as by its own ``save_pretrained``.
        """
        saved = revert_weight_conversion(self.causal_lm, dict(weights))
        return {name: weight.contiguous() for name, weight in saved.items()}


def _check_saved(checkpoint: str, student: Student, tensors: ModelTensors) -> None:
    """What will be pushed is the checkpoint's own tensors, each of them once."""
    empty = {name: torch.empty_like(weight, device="meta") for name, weight in student.named_weights()}
    saved = {name: tuple(weight.shape) for name, weight in student.as_saved(empty).items()}
    odd = sorted(saved.items() ^ tensors.required.items())
    if odd:
        allowed = f"a checkpoint that transformers would save with the same tensors; {odd[0][0]} differs"
        raise InvalidParameter(STUDENT_FIELD, checkpoint, allowed)


def _check_plain_head(checkpoint: str, model: Any) -> None:
    config = model.config.get_text_config()
    for field in _LOGIT_CHANGES:
        value = getattr(config, field, None)
        if value not in (None, 1.0):
            raise InvalidParameter(f"{field} of {checkpoint!r}", value, "models whose logits are the head's output")
    head = getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise InvalidParameter(f"output head of {checkpoint!r}", type(head).__name__, "a linear lm_head without bias")
