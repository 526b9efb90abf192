"""The plugin puts in place what the table of touch points says, proves it, and refuses another SGLang."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookType, _wrap_fn

from sglang_trb.engine import hooks, plugin
from sglang_trb.engine.backend import BACKEND
from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG
from sglang_trb.engine.touch_points.table import HOOKS
from sglang_trb.errors import NotInForce

CLASS = "sglang.srt.managers.scheduler.Scheduler"
FUNCTION = "sglang.srt.utils.auth.decide_request_auth"


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_registered", {})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, HookType]]:
    """What SGLang was told to put in place; nothing is."""
    told: dict[str, tuple[Any, HookType]] = {}
    monkeypatch.setattr(HookRegistry, "register", lambda target, hook, kind: told.update({target: (hook, kind)}))
    monkeypatch.setattr(plugin, "register_sampler_backend", lambda name, factory: None)
    return told


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what SGLang holds; every hook of the table is in force but those that are named."""

    def change(**changed: Any) -> None:
        monkeypatch.setattr(hooks, "_registered", {target: point.replacement() for target, point in HOOKS.items()})
        found = {target: wrapped(point.replacement()) for target, point in HOOKS.items()}
        found |= {target: changed[name] for target in HOOKS if (name := target.rpartition(".")[2]) in changed}
        monkeypatch.setattr(hooks.pkgutil, "resolve_name", found.__getitem__)

    return change


def plain() -> None:
    """A function of SGLang."""


def wrapped(hook: Any, kind: HookType = HookType.AROUND) -> Any:
    """What SGLang makes of a hook."""
    return hook if isinstance(hook, type) else _wrap_fn(plain, hook, kind)


def test_another_sglang_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    factories: dict[str, Callable[[], Any]] = {}
    monkeypatch.setattr(plugin, "register_sampler_backend", factories.__setitem__)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.5.99")
    plugin.register()
    with pytest.raises(NotInForce, match=rf"sglang 0\.5\.99 is installed.*{CHECKED_SGLANG}"):
        factories[BACKEND]()


def test_every_hook_of_the_table_is_registered_and_no_other(registered: dict[str, tuple[Any, HookType]]) -> None:
    plugin.register()
    assert registered.keys() == HOOKS.keys()
    kinds = {"replaced": HookType.REPLACE, "wrapped": HookType.AROUND, "preceded": HookType.BEFORE}
    for target, (hook, kind) in registered.items():
        assert kind is kinds[HOOKS[target].how.value]
        assert isinstance(hook, type) == (kind is HookType.REPLACE)


def test_what_is_not_in_the_table_is_not_hooked(registered: dict[str, tuple[Any, HookType]]) -> None:
    with pytest.raises(NotInForce, match=r"TpModelWorker has no hook in the table"):
        hooks.put("sglang.srt.managers.tp_worker.TpModelWorker")
    assert not registered


def test_a_plugin_that_was_not_loaded_is_refused() -> None:
    with pytest.raises(NotInForce, match="not loaded in this process; unset SGLANG_PLUGINS"):
        hooks.require_in_force()


def test_a_plugin_that_stopped_half_way_is_refused(holds: Callable[..., None]) -> None:
    """SGLang logs what a plugin raises and serves on."""
    holds()
    del hooks._registered[CLASS]
    with pytest.raises(NotInForce, match=CLASS):
        hooks.require_in_force()


def test_a_class_that_did_not_take_is_named(holds: Callable[..., None]) -> None:
    holds(Scheduler=HOOKS[CLASS].replacement().__mro__[1])
    with pytest.raises(NotInForce, match=rf"{CLASS} is .* without the hook"):
        hooks.require_in_force()


@pytest.mark.parametrize("other", [plain, functools.wraps(plain)(lambda: None), wrapped(lambda original: None)])
def test_a_function_that_did_not_take_is_named(holds: Callable[..., None], other: Callable) -> None:
    """Also where another plugin wraps it."""
    holds(decide_request_auth=other)
    with pytest.raises(NotInForce, match=FUNCTION):
        hooks.require_in_force()


@pytest.mark.parametrize("kind", [HookType.AROUND, HookType.BEFORE])
def test_another_plugins_wrapper_around_ours_passes(holds: Callable[..., None], kind: HookType) -> None:
    ours = wrapped(HOOKS[FUNCTION].replacement(), kind)
    holds(decide_request_auth=_wrap_fn(ours, lambda original: original(), HookType.AROUND))
    hooks.require_in_force()
