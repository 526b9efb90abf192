"""The plugin proves that its hooks took, and refuses another SGLang."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest

from sglang_trb.engine import hooks, plugin
from sglang_trb.errors import NotInForce


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_required", {})


def test_another_sglang_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    factories: dict[str, Callable[[], Any]] = {}
    monkeypatch.setattr(plugin, "register_sampler_backend", factories.__setitem__)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.5.99")
    plugin.register()
    with pytest.raises(NotInForce, match=r"sglang 0\.5\.99 is installed.*0\.5\.21"):
        factories[hooks.BACKEND]()


def test_a_plugin_that_was_not_loaded_is_refused() -> None:
    with pytest.raises(NotInForce, match="not loaded in this process; unset SGLANG_PLUGINS"):
        hooks.require_in_force()


def test_a_hook_that_did_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replacement:
        pass

    monkeypatch.setitem(hooks._required, "sglang.srt.managers.tp_worker.TpModelWorker", Replacement)
    with pytest.raises(NotInForce, match=r"sglang\.srt\.managers\.tp_worker\.TpModelWorker is .* without the hook"):
        hooks.require_in_force()


def test_a_function_hook_that_did_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hooks._required, "sglang.srt.utils.auth.decide_request_auth", lambda: None)
    with pytest.raises(NotInForce, match="decide_request_auth"):
        hooks.require_in_force()
