"""What every test shares: one thread, no display. Not here: environments (`environments.py`)."""

import matplotlib
import pytest
import torch as th

matplotlib.use("Agg")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small networks are fastest on one thread, and sums come out the same on every machine."""
    th.set_num_threads(1)


@pytest.fixture
def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of each compiled function that is called on a model; those of a rehearsal are not counted."""
    from sb3_simple_ddpg.speed import compiled

    calls: list[str] = []
    for kind in (compiled._WholeUpdate, compiled._GradientsAlone):

        def counted(self, batch, call=kind.__call__):
            if self.give_up is not compiled._raise:
                calls.append(type(self).__name__)
            return call(self, batch)

        monkeypatch.setattr(kind, "__call__", counted)
    return calls
