"""A device that is not there: what an operation would cost on one, and whether it would stall the host.

Tensors on ``meta`` stand for the device. They have no values, so most looks at them raise by themselves; `DeviceWatch`
refuses the rest by name, counts operations and bytes, and follows what is alive.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal")
"""Operations whose answer the host waits for, or whose shape depends on values."""


class HostSync(AssertionError):
    """The host would wait for the device."""


class _NoLists(TorchFunctionMode):
    """A list as an index becomes a tensor of the host below what a dispatch mode sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].device == DEVICE:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in parts):
                raise HostSync("a list as an index: a copy from the host")
        return function(*args, **(kwargs or {}))


class DeviceWatch(TorchDispatchMode):
    """Refuses what stalls the host.

    Attributes:
        operations: how often each operation ran that computes something on the device.
        traffic_bytes: what they read and wrote.
        peak_bytes: the most that was alive at once of what was made under the watch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.traffic_bytes = self.peak_bytes = 0
        self._lists = _NoLists()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def launches(self) -> dict[str, int]:
        """The operations that launch something: those that only allocate do not."""
        return {name: count for name, count in self.operations.items() if "empty" not in name}

    def __enter__(self) -> DeviceWatch:
        self._lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._lists.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self._refuse(name, inputs, args, kwargs)
        result = function(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.device == DEVICE]
        writes = function._schema.is_mutable and any(x.device == DEVICE for x in inputs)
        if (outputs or writes) and not function.is_view:
            self.operations[name] += 1
            self.traffic_bytes += sum(x.numel() * x.element_size() for x in (*inputs, *outputs) if x.device == DEVICE)
        self._follow(inputs, outputs)
        return result

    def _refuse(self, name: str, inputs: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> None:
        on_device = any(x.device == DEVICE for x in inputs)
        on_host = any(x.device != DEVICE and x.dim() > 0 for x in inputs)
        indices = [x for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor)] if "index" in name else []
        if on_device and name in SYNCHRONISING:
            raise HostSync(f"{name}: the host waits for a value of the device")
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices) and name in ("index", "index_put", "index_put_"):
            raise HostSync(f"{name}: a mask as an index has a shape that depends on values")
        if name == "_to_copy" and "device" in kwargs and inputs[0].device != torch.device(kwargs["device"]):
            raise HostSync(f"{name}: a copy between {inputs[0].device} and {kwargs['device']}")
        if on_device and on_host:
            raise HostSync(f"{name}: tensors of the host and of the device together")

    def _follow(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Count what is alive after an operation: its results beside everything made before and not yet freed."""
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        given = {x.untyped_storage()._cdata for x in inputs}
        for output in outputs:
            storage = output.untyped_storage()
            if storage._cdata not in given:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
