"""Where the kernels run in these tests: compiled on a GPU, in Triton's interpreter elsewhere."""

import pytest
import torch
from contract import needs_triton


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    """Name of an implementation; the tests that take it are the contract of all of them."""
    if request.param == "triton":
        needs_triton()
    return request.param


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request, device):
    """Number formats; Triton's interpreter does not know bfloat16."""
    if request.param == "bfloat16" and device == "cpu":
        pytest.skip("Triton's interpreter computes bfloat16 wrongly; it is tested compiled, on a GPU")
    return getattr(torch, request.param)


@pytest.fixture
def device():
    """Where tensors of the test lie."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poisoned():
    """Fill what torch allocates with NaN, so that an element that a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.zeros(1).new_empty(64).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
