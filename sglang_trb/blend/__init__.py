"""The blend of student and teacher: definitions, solver and sampler step. Needs torch, never sglang."""

from sglang_trb.blend.align import align_eos
from sglang_trb.blend.api import trust_region_blend
from sglang_trb.blend.step import blend_step
from sglang_trb.blend.types import BlendOutput, RowControls, StepOutput
from sglang_trb.pair.alignment import StopAlignment

__all__ = [
    "BlendOutput",
    "RowControls",
    "StepOutput",
    "StopAlignment",
    "align_eos",
    "blend_step",
    "trust_region_blend",
]
