"""How a run tells what it has reached while it goes on, and how it is told to stop: between processes, or over Ray.

Not here: the runs (`worker.py`, `engines.py`), and who stops them, and why.

Only evaluations travel, a few numbers each. On one machine they are files in a folder; on a cluster, whose nodes share
no folder, they go through an actor of Ray's. A run asks after each evaluation whether it shall go on, so one that is
told to stop goes on to its next evaluation at most, and gives its record as always.
"""

import json
import uuid
from pathlib import Path
from typing import Any, Final, Protocol

from sb3_simple_ddpg.experiment.folder import write_whole

_STOP: Final = "stop"


class Post(Protocol):
    """Between one process and the runs that it has started; given to a `Job` as `after_evaluation`."""

    def __call__(self, seed: int, evaluation: list[Any]) -> bool:
        """
        :param seed: of the run
        :param evaluation: as the record of a run has it: timestep, seconds, returns, success rate
        :return: whether the run shall go on
        """
        ...

    def take(self) -> list[tuple[int, list[Any]]]:
        """
        :return: seed and evaluation of all that has arrived since the last call
        """
        ...

    def stop(self) -> None:
        """Tell every run to stop after its next evaluation."""
        ...

    def close(self) -> None:
        """Tidy up; nobody writes any more."""
        ...


class LocalPost:
    """
    For processes of this machine: a file for each evaluation.

    :param folder: empty, and nobody else's
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[str] = set()

    def __call__(self, seed: int, evaluation: list[Any]) -> bool:
        write_whole(self.folder / f"{seed}-{evaluation[0]}.json", json.dumps([seed, evaluation]))
        return not (self.folder / _STOP).exists()

    def take(self) -> list[tuple[int, list[Any]]]:
        new = [path for path in sorted(self.folder.glob("*.json")) if path.name not in self._taken]
        self._taken |= {path.name for path in new}
        return [tuple(json.loads(path.read_text())) for path in new]

    def stop(self) -> None:
        (self.folder / _STOP).touch()

    def close(self) -> None:
        """The folder belongs to whoever gave it."""


class RayPost:
    """For the tasks of a Ray cluster, which this process has joined: an actor that takes no CPU of a run's."""

    def __init__(self) -> None:
        import ray

        self.name = f"post-{uuid.uuid4()}"
        # The actor lives as long as this handle, or this process: nothing is left on the cluster.
        self._kept: Any = ray.remote(num_cpus=0)(_Box).options(name=self.name).remote()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name}

    def _actor(self) -> Any:  # noqa: ANN401 - Ray's handles have no type
        import ray

        return ray.get_actor(self.name)

    def __call__(self, seed: int, evaluation: list[Any]) -> bool:
        import ray

        goes_on: bool = ray.get(self._actor().put.remote(seed, evaluation))
        return goes_on

    def take(self) -> list[tuple[int, list[Any]]]:
        import ray

        found: list[tuple[int, list[Any]]] = ray.get(self._actor().take.remote())
        return found

    def stop(self) -> None:
        import ray

        ray.get(self._actor().stop.remote())

    def close(self) -> None:
        import ray

        ray.kill(self._actor())


class _Box:
    """What lies in the actor."""

    def __init__(self) -> None:
        self.goes_on = True
        self.new: list[tuple[int, list[Any]]] = []

    def put(self, seed: int, evaluation: list[Any]) -> bool:
        self.new.append((seed, evaluation))
        return self.goes_on

    def take(self) -> list[tuple[int, list[Any]]]:
        new, self.new = self.new, []
        return new

    def stop(self) -> None:
        self.goes_on = False
