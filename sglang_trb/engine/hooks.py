"""The registry of what is replaced in SGLang, and the proof that it was; `plugin` fills it.

SGLang's plugin loader fails open: an error while loading a plugin or applying a hook is logged and the server serves
on. So each process proves with `require_in_force` that what it depends on took, before it serves.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_trb.errors import NotInForce

BACKEND = "trb"
"""The sampling backend of a blending server (``--sampling-backend trb``)."""

CHECKED_SGLANG = "0.5.21"

_required: dict[str, object] = {}


def put(target: str, hook: Callable, kind: HookType) -> None:
    """Have SGLang apply a hook, and require from now on that it took.

    Args:
        target: the object of SGLang, its name below ``sglang.srt``.
        hook: the class that takes its place, or the function around it.
        kind: which of both.
    """
    target = f"sglang.srt.{target}"
    HookRegistry.register(target, hook, kind)
    _required[target] = hook


def require_in_force() -> None:
    """Raise unless every replacement that this process registered is what SGLang now uses.

    Raises:
        NotInForce: names the first SGLang object that is not the replacement.
    """
    if not _required:
        raise NotInForce(
            "the sglang-trb plugin was not loaded in this process; unset SGLANG_PLUGINS and SGLANG_PLATFORM or add "
            "'trb' and 'trb_cpu' to them, and reinstall sglang-trb if `trb doctor` shows no entry points"
        )
    for target, expected in _required.items():
        found = pkgutil.resolve_name(target)
        in_force = found is expected if isinstance(expected, type) else hasattr(found, "__wrapped__")
        if not in_force:
            raise NotInForce(f"{target} is {found!r}, without the hook of sglang-trb; the log above says why")
