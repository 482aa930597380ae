"""The guard against NaN and infinity: stop at the first one, or skip it, with the weights as they were before.

Not here: what makes an environment fail in other ways (`environments.py`), and limits on gradients (`max_grad_norm`).

Watched are observations, rewards and actions as they are stored, losses, and the weights and optimizer states that a
gradient has moved (a gradient that is not finite leaves none of them finite). What is measured on the device comes back
with the statistics that are logged anyway: one transfer a call of `train`.
"""

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_simple_ddpg.safety.checks import NonFiniteError
from sb3_simple_ddpg.safety.snapshot import Snapshot

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

Observations: TypeAlias = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]

DIAGNOSIS = "diagnosis.json"
#: What does a gradient step: statistics out of a batch. One that `looks_itself` leaves everything as it was where a
#: number is not finite, and puts one of these behind its statistics.
Update: TypeAlias = Callable[[ReplayBufferSamples], th.Tensor]
_NOWHERE, _IN_CRITIC, _IN_ACTOR, _IN_BOTH, _SOMEWHERE = range(5)


class NonFiniteGuard:
    """
    What one model needs to notice a number that is not finite and to go back. Never saved.

    It keeps nothing of the model itself, so a copy of it serves a copy of the model.
    """

    def __init__(self) -> None:
        self.skipped_batches = self.skipped_transitions = 0
        self._memory = Snapshot()
        self._statistics: list[tuple[object, dict[str, Any]]] = []
        self._acting_blind = False
        self._n_updates = 0

    # --- updates -----------------------------------------------------------------------------------------------

    def watched(
        self, model: "Agent", batches: Iterable[ReplayBufferSamples], count: int,
        choose: Callable[[ReplayBufferSamples], Update], statistics: list[th.Tensor],
    ) -> Iterator[tuple[ReplayBufferSamples, Update]]:  # fmt: skip
        """
        Remember the weights before they move; with `on_non_finite="skip"`, undo each update that is not finite.

        :param model: the algorithm, as it is now
        :param batches: of one call of `train`
        :param count: number of batches
        :param choose: gives the update that a batch will get: plain or compiled
        :param statistics: of the updates so far; what is found is put behind those of one that does not look itself
        :return: each batch with its update
        """
        skip = model.on_non_finite == "skip"
        self._n_updates = model._n_updates
        self._memory.forget()
        # Compiled updates on batches that need nobody's code run in a row: nothing can be another in between.
        in_a_row = not isinstance(batches, Generator)
        update: Update | None = None
        for batch in batches:
            if not (in_a_row and getattr(update, "goes_on", False)):
                update = choose(batch)
            assert update is not None
            looks_itself = getattr(update, "looks_itself", False)
            # To go back behind several updates takes a copy, whoever looks.
            if (skip or not self._memory) and (not looks_itself or (count > 1 and not skip)):
                self._memory.take(model)
            yield batch, update
            if looks_itself:
                continue
            statistics[-1] = th.cat([statistics[-1], _SOMEWHERE * self._memory.found(model)])
            if skip and not _is_finite(statistics[-1].tolist()):
                self._memory.restore()

    def read(self, model: "Agent", statistics: list[th.Tensor]) -> tuple[list[list[float]], int]:
        """
        What one call of `train` has measured, by one transfer from the device.

        :param model: the algorithm, as it is now
        :param statistics: of each update, what it found behind them
        :return: the statistics of the updates that count, and their number
        :raises NonFiniteError: with `on_non_finite="stop"`, when a loss, a gradient or a new weight is not finite; the
            weights are those of before `train`
        """
        rows = [statistics[0].tolist()] if len(statistics) == 1 else th.stack(statistics).tolist()
        finite = [row for row in rows if _is_finite(row)]
        if model.on_non_finite == "skip":
            self.skipped_batches += len(rows) - len(finite)
            model.logger.record("train/n_skipped", self.skipped_batches)
            model.logger.record("rollout/n_skipped", self.skipped_transitions)
        elif len(finite) < len(rows):
            self._go_back(model, rows)
        return finite, len(finite)

    def _go_back(self, model: "Agent", rows: list[list[float]]) -> None:
        first = next(index for index, row in enumerate(rows) if not _is_finite(row))
        of_critic, of_actor, *_, found = rows[first]
        broken = self._broken_weight(model.critic, "critic")
        if not math.isfinite(of_critic):
            what = f"critic_loss is {of_critic}"
        elif broken:  # a critic that its own gradient broke makes the actor's loss NaN too
            what = broken
        elif found in (_IN_CRITIC, _IN_BOTH):
            what = "the gradient or new value of a weight of the critic is not finite"
        elif not math.isfinite(of_actor):
            what = f"actor_loss is {of_actor}"
        else:
            what = self._broken_weight(model.actor, "actor")
            what = what or "the gradient or new value of a weight of the actor is not finite"
        if self._memory:
            self._memory.restore()
        raise self.stop(
            model,
            f"{what} at timestep {model.num_timesteps}, gradient step {self._n_updates + first + 1}"
            f"{self._broken_row(model)}",
            "The weights are those before this call of train. "
            "Look for NaN or infinity in observations and rewards, or lower the learning rate.",
            losses=rows[first][:2],
        )

    @staticmethod
    def _broken_weight(network: th.nn.Module, name: str) -> str:
        for weight_name, weight in network.named_parameters():
            if not th.isfinite(weight).all():
                gradient = weight.grad is not None and not th.isfinite(weight.grad).all()
                which = "the gradient of" if gradient else "the gradient or new value of"
                return f"{which} {name} {weight_name} is not finite"
        return ""

    def _broken_row(self, model: "Agent") -> str:
        """The first stored number that is not finite, when there is one: from a loaded buffer, for example."""
        for name, values in self._stored(model).items():
            if not _all_finite(values):
                row, env, *place = np.argwhere(~np.isfinite(values))[0].tolist()
                return f"; the replay buffer holds {values[row, env, *place]} in {name}, row {row}, environment {env}"
        return ""

    # --- transitions -------------------------------------------------------------------------------------------

    def check_first(self, model: "Agent", observations: Observations) -> None:
        """
        :param model: the algorithm, as it is now
        :param observations: of a reset, as the agent sees them
        :raises NonFiniteError: when one is not finite
        """
        normalizer = model._vec_normalize_env
        if normalizer is not None:
            observations = normalizer.old_obs
            self._statistics = _moving_parts(normalizer)
        for name, values in _parts("observation", observations).items():
            if not _all_finite(values):
                raise self.stop(model, _where(name, values, model.num_timesteps), "The environment's reset gave it.")

    def accepts(
        self,
        model: "Agent",
        actions: npt.NDArray[Any],
        new_observations: Observations,
        rewards: npt.NDArray[Any],
        infos: list[dict[str, Any]] | None,
    ) -> bool:
        """
        :param model: the algorithm, as it is now
        :param actions: in [-1, 1], one for each environment
        :param new_observations: what the agent sees next
        :param rewards: one for each environment
        :param infos: None when no episode has ended
        :return: whether the transition may be stored
        :raises NonFiniteError: with `on_non_finite="stop"`, when something in it is not finite
        """
        normalizer = model._vec_normalize_env
        if infos is None and normalizer is None and not self._acting_blind and type(new_observations) is np.ndarray:
            # Nearly always: everything finite by one sum of squares, which is not so for what is not, or very large.
            squares = float(np.vdot(new_observations, new_observations)) + float(np.vdot(rewards, rewards))
            if math.isfinite(squares + float(np.vdot(actions, actions))):
                return True
        if normalizer is not None:  # its limits would hide an infinity
            new_observations, rewards = normalizer.old_obs, normalizer.old_reward
        observations_are_finite = all(map(_all_finite, _parts("", new_observations).values()))
        if observations_are_finite and _all_finite(rewards) and _all_finite(actions) and not self._acting_blind:
            ends = infos and [info["terminal_observation"] for info in infos if "terminal_observation" in info]
            if not ends or all(_all_finite(values) for end in ends for values in _parts("", end).values()):
                if normalizer is not None:
                    self._statistics = _moving_parts(normalizer)
                return True
        for part, statistics in self._statistics:
            vars(part).update(statistics)
        if model.on_non_finite == "skip":
            self.skipped_transitions += 1
            model.logger.record("rollout/n_skipped", self.skipped_transitions)
            return False
        found = {"action": actions, "reward": rewards, **_parts("observation", new_observations)}  # cause first
        for index, info in enumerate(infos or []):
            if "terminal_observation" in info:
                found |= _parts(f"terminal observation of environment {index}", info["terminal_observation"])
        name, values = next((name, np.asarray(values)) for name, values in found.items() if not _all_finite(values))
        raise self.stop(
            model, _where(name, values, model.num_timesteps), "The environment or the action noise gave it."
        )

    def skip(self, new_observations: Observations) -> Observations:
        """
        What the agent acts on after a transition that was not stored.

        :param new_observations: as the environment gave them
        :return: the same with 0 for what is not finite; then what follows is not stored either
        """
        self._acting_blind = not all(map(_all_finite, _parts("", new_observations).values()))
        if not self._acting_blind:
            return new_observations
        if isinstance(new_observations, dict):
            return {key: _with_zeros(values) for key, values in new_observations.items()}
        return _with_zeros(new_observations)

    # --- reports -----------------------------------------------------------------------------------------------

    def stop(self, model: "Agent", what: str, cure: str, **more: object) -> NonFiniteError:
        """
        Write a diagnosis into the logger's folder, where there is one.

        :param model: the algorithm, as it is now
        :param what: is not finite, where and when
        :param cure: what to do
        :param more: for the diagnosis
        :return: the error to raise
        """
        ranges = {name: _range(values) for name, values in self._stored(model).items()}
        seen = ", ".join(f"{name} {low:.6g} to {high:.6g}" for name, (low, high) in ranges.items())
        networks = (("actor", model.actor), ("critic", model.critic))
        report = {
            "what": what,
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "ranges_of_stored_transitions": ranges,
            "stored_transitions": model.replay_buffer.size() * model.n_envs if model.replay_buffer else 0,
            "largest_weights": {
                name: max((float(weight.detach().abs().max()) for weight in network.parameters()), default=0.0)
                for name, network in networks
            },
            "learning_rates": {name: network.optimizer.param_groups[0]["lr"] for name, network in networks},
            **more,
        }
        error = NonFiniteError(f"{what}. Stored so far: {seen or 'nothing'}. {cure}{self._write(model, report)}")
        error.reported = True
        return error

    def _write(self, model: "Agent", report: dict[str, object]) -> str:
        folder = model.logger.get_dir()
        if folder is None:
            return ""
        path = Path(folder) / DIAGNOSIS
        try:
            plain = json.loads(json.dumps(report), parse_constant=lambda name: str(float(name)))  # JSON has no NaN
            path.write_text(json.dumps(plain, indent=2) + "\n", "utf-8")
        except OSError as error:
            return f" No diagnosis could be written: {error}."
        return f" Diagnosis: {path}."

    def _stored(self, model: "Agent") -> dict[str, npt.NDArray[Any]]:
        """Observations, actions and rewards in the buffer, without rows never written and what cannot be NaN."""
        buffer = model.replay_buffer
        if buffer is None or buffer.size() == 0:
            return {}
        found = {**_parts("observations", buffer.observations), "actions": buffer.actions, "rewards": buffer.rewards}
        if not buffer.optimize_memory_usage:
            found |= _parts("next_observations", buffer.next_observations)
        return {name: values[: buffer.size()] for name, values in found.items() if values.dtype.kind == "f"}


def _is_finite(row: list[float]) -> bool:
    """Of one gradient step: both losses, and nothing found in weights and optimizer states."""
    return row[-1] == _NOWHERE and math.isfinite(row[0]) and math.isfinite(row[1])


def _all_finite(values: object) -> bool:
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return True
    # The sum of squares is finite, in one fast call, unless something is not or is very large.
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def _with_zeros(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(np.isfinite(values), values, values.dtype.type(0)) if values.dtype.kind == "f" else values


def _parts(name: str, observations: Observations) -> dict[str, npt.NDArray[Any]]:
    if isinstance(observations, dict):
        return {f"{name}[{key!r}]": values for key, values in observations.items()}
    return {name: observations}


def _where(name: str, values: npt.NDArray[Any], timestep: int) -> str:
    place = np.argwhere(~np.isfinite(values))[0].tolist()
    value = values[tuple(place)]
    if not name.startswith("terminal"):
        name = f"{name} of environment {place.pop(0)}"
    return f"{name} is {value}{f' at index {tuple(place)}' if place else ''}, at timestep {timestep}"


def _range(values: npt.NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def _moving_parts(normalizer: VecNormalize) -> list[tuple[object, dict[str, Any]]]:
    """What VecNormalize replaces, and never writes into, at every step: each object and what it holds now."""
    observations: Any = normalizer.obs_rms if normalizer.norm_obs else {}
    parts = list(observations.values()) if isinstance(observations, dict) else [observations]
    moving = [(part, dict(vars(part))) for part in [*parts, normalizer.ret_rms]]
    return [*moving, (normalizer, {"returns": normalizer.returns})]
