"""What every test shares: one thread, no display. Not here: environments (`environments.py`)."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import matplotlib
import pytest
import torch as th

from sb3_simple_ddpg.speed import torch_private

matplotlib.use("Agg")
# Processes of environments, and others of a server's children, begin in milliseconds instead of four seconds.
multiprocessing.set_forkserver_preload(["sb3_simple_ddpg"])


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small networks are fastest on one thread, and sums come out the same on every machine."""
    th.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def compiled_once() -> Iterator[None]:
    """
    A graph that an earlier test of this process has compiled is not compiled again: that takes 20 seconds.

    Two graphs are the same where their operations and the layouts of all their values are. A test that is about
    compiling itself takes the fixture `compiler_itself`.
    """
    compile_graph, known = torch_private.compile_graph, {}

    def remembered(graph: th.fx.GraphModule, inputs: list[th.Tensor]) -> Any:
        layouts = [(node.name, str(node.target), repr(node.meta.get("val"))) for node in graph.graph.nodes]
        strides = [(each.dtype, each.device, each.shape, each.stride()) for each in inputs]
        key = graph.code, repr(layouts), repr(strides), th.get_num_threads()
        if key not in known or any(isinstance(value, th.Tensor) for value in vars(graph).values()):
            known[key] = compile_graph(graph, inputs)
        return known[key]

    remembered.itself = compile_graph  # type: ignore[attr-defined]
    torch_private.compile_graph = remembered
    yield
    torch_private.compile_graph = compile_graph


@pytest.fixture
def compiler_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered."""
    monkeypatch.setattr(torch_private, "compile_graph", torch_private.compile_graph.itself)


@pytest.fixture(params=["recorded", pytest.param("compiled", marks=pytest.mark.long)])
def recorded_or_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    For what is followed and when: the update as it was recorded, run operation by operation.

    It holds on to the same things as a compiled one, and takes a second instead of 20. `make test-long` compiles it.
    """
    if request.param == "recorded":
        monkeypatch.setattr(torch_private, "compile_graph", lambda graph, inputs: lambda tensors: graph(*tensors))


@pytest.fixture
def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of each compiled function that is called on a model; those of a rehearsal are not counted."""
    from sb3_simple_ddpg.speed import compiled

    calls: list[str] = []
    call = compiled._CompiledUpdate.__call__

    def counted(self, batch):
        if self.give_up is not compiled._raise:
            calls.append(type(self).__name__)
        return call(self, batch)

    monkeypatch.setattr(compiled._CompiledUpdate, "__call__", counted)
    return calls
