"""Which backend blends a server's steps: ``TRB_BLEND_BACKEND`` in the server's environment."""

from __future__ import annotations

import os
from functools import cache

import torch

from sglang_trb.blend import solvers
from sglang_trb.errors import InvalidParameter

VARIABLE = "TRB_BLEND_BACKEND"


@cache
def blend_backend() -> str:
    """A name of `solvers.BACKENDS`, or ``auto``.

    Raises:
        InvalidParameter: there is no such backend, or not for this machine.
    """
    name = os.environ.get(VARIABLE) or solvers.AUTO
    allowed = [solvers.AUTO, "torch", "triton"] if torch.cuda.is_available() else [solvers.AUTO, "torch"]
    if name not in allowed:
        machine = "" if torch.cuda.is_available() else " (triton needs a CUDA device)"
        raise InvalidParameter(VARIABLE, name, "one of " + ", ".join(allowed) + machine)
    return name
