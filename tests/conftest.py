"""What all tests share: one thread, one seed, and no GPU test without a GPU."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A busy machine is no reason to fail.
settings.register_profile("dagdiff", deadline=None)
settings.load_profile("dagdiff")


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator seeded with 0."""
    return torch.Generator().manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
