"""Puts the hooks of the table of touch points in place, and proves that they are.

SGLang's plugin loader fails open: an error while loading a plugin or applying a hook is logged and the server serves
on. So each process proves with `require_in_force` that the whole table took, before it serves.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_trb.engine.touch_points.points import How
from sglang_trb.engine.touch_points.table import HOOKS
from sglang_trb.errors import NotInForce

_KINDS = {How.REPLACED: HookType.REPLACE, How.WRAPPED: HookType.AROUND, How.PRECEDED: HookType.BEFORE}

_registered: dict[str, Any] = {}
"""Full name of SGLang's object → ours, in this process."""


def put_all() -> None:
    """Have SGLang apply every hook of the table."""
    for target in HOOKS:
        put(target)


def put(target: str) -> None:
    """Have SGLang apply one hook.

    Args:
        target: full name of the object of SGLang; the table says what stands in its place.

    Raises:
        NotInForce: the table has no hook of that name.
    """
    point = HOOKS.get(target)
    if point is None:
        raise NotInForce(f"{target} has no hook in the table of touch points, so nothing may be put there")
    hook = point.replacement()
    HookRegistry.register(target, hook, _KINDS[point.how])
    _registered[target] = hook


def require_in_force() -> None:
    """Raise unless every hook of the table was registered in this process and is what SGLang now uses.

    Raises:
        NotInForce: names the first object of SGLang that is without its hook.
    """
    if not _registered:
        raise NotInForce(
            "the sglang-trb plugin was not loaded in this process; unset SGLANG_PLUGINS and SGLANG_PLATFORM or add "
            "'trb' and 'trb_cpu' to them, and reinstall sglang-trb if `trb doctor` shows no entry points"
        )
    for target in HOOKS:
        found, hook = pkgutil.resolve_name(target), _registered.get(target)
        if hook is None or not _stands_in(found, hook):
            raise NotInForce(f"{target} is {found!r}, without the hook of sglang-trb; the log above says why")


def _stands_in(found: Any, hook: Any) -> bool:
    """Whether what SGLang holds is our class, or a wrapper that calls our function, maybe within others' wrappers."""
    if isinstance(hook, type):
        return found is hook
    while found is not None:
        if any(cell.cell_contents is hook for cell in getattr(found, "__closure__", None) or ()):
            return True
        found = getattr(found, "__wrapped__", None)
    return False
