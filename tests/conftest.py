"""What every test shares: one thread, no display. Not here: environments (`environments.py`)."""

import matplotlib
import pytest
import torch as th

matplotlib.use("Agg")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small networks are fastest on one thread, and sums come out the same on every machine."""
    th.set_num_threads(1)
