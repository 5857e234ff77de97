"""What holds for all tests, set before a test module imports torch's or Triton's parts.

Where tests run in several processes side by side, each computes in one thread, as do those that it starts. Without a
CUDA device Triton's kernels run in its interpreter: Triton reads the variable once, when it is imported.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, which is later

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
