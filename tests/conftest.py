"""Without a CUDA device, Triton's kernels are interpreted. Triton decides that while it is imported, hence here."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.experimental.gluon  # noqa: F401

    del os.environ["TRITON_INTERPRET"]  # servers that a test starts inherit the environment
