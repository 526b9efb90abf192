"""Trust-region behaviour blending for on-policy distillation, inside SGLang.

The names below are the public Python interface. None needs sglang, and only the blend needs torch, which is why it is
imported on first use: `trb --help` and plain HTTP clients stay quick.
"""

from typing import TYPE_CHECKING, Any

from sglang_trb.wire.params import BlendParams

if TYPE_CHECKING:
    from sglang_trb.blend import BlendOutput, align_eos, trust_region_blend

__all__ = ["BlendOutput", "BlendParams", "align_eos", "trust_region_blend"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sglang_trb import blend

        return getattr(blend, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
