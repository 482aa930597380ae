"""Exploration: turns what the user gives as `action_noise` into the noise object that Stable-Baselines3 (SB3) calls.

Not here: where the noise is added. `SimpleDDPG._sample_action` adds one draw to the actor's output in [-1, 1], as SB3
does, clips to [-1, 1], and only then maps the sum to the environment's range. So a standard deviation of 1.0 is half
the width of the action range, and 0.1 is the same push in every environment.

Sources: Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971, Section 3 (exploration policy) and Section 7 (OU
noise); Eberhard et al. 2023, https://openreview.net/forum?id=hQ9V5QN27eS (coloured noise)
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.utils import FloatSchedule


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """
    Noise that wanders instead of jumping, as in the 2015 paper: a description, since the shape is the environment's.

    :param sigma: size of each random push; 1.0 is half the width of the action range
    :param theta: pull back to zero, per unit of time
    :param dt: units of time in one timestep; SB3's default
    :raises ValueError: for a negative number
    """

    sigma: float = 0.2
    theta: float = 0.15
    dt: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("sigma", "theta", "dt"):
            object.__setattr__(self, name, _check_scale(name, getattr(self, name)))  # frozen for everybody else


@dataclass(frozen=True)
class ColoredNoise:
    """
    Noise whose power at the frequency f is proportional to 1 / f^beta: a description, since the shape is the
    environment's. 0 is white noise (`action_noise=0.1`), 1 pink noise, which Eberhard et al. 2023 recommend, 2 is close
    to an Ornstein-Uhlenbeck process.

    :param sigma: standard deviation; 1.0 is half the width of the action range
    :param beta: the exponent
    :param length: timesteps of a sequence; each episode begins a new one, and a longer episode goes on with another
    :raises ValueError: for a negative number, or a sequence of fewer than two timesteps
    """

    sigma: float = 0.3
    beta: float = 1.0
    length: int = 1000

    def __post_init__(self) -> None:
        for name in ("sigma", "beta"):
            object.__setattr__(self, name, _check_scale(name, getattr(self, name)))  # frozen for everybody else
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 2:
            raise ValueError(
                f"length must be a whole number of at least 2, got {self.length!r}: the timesteps of the longest "
                "episode, 1000 for example."
            )


NoiseSetting: TypeAlias = float | Callable[[float], float] | ActionNoise | OrnsteinUhlenbeck | ColoredNoise | None


class GaussianNoise(VectorizedActionNoise):
    """
    N(0, scale^2) for all environments in one draw; the numbers are those of SB3's `NormalActionNoise`, one by one.

    It is a `VectorizedActionNoise` because SB3 wraps whatever is not, and would then draw once per environment.

    :param scale: standard deviation, or a schedule of it; 1.0 is half the width of the action range
    :param shape: shape of one action, `action_space.shape`
    :param n_envs: number of environments
    """

    def __init__(self, scale: float | Callable[[float], float], shape: tuple[int, ...], n_envs: int) -> None:
        self.schedule = FloatSchedule(scale)
        self.shape = shape
        self.n_envs = n_envs
        self.scale = math.nan  # unlike every number, so that the first one is checked, whatever it is
        self.update(progress_remaining=1.0)

    def update(self, progress_remaining: float) -> None:
        """
        Follow the schedule.

        :param progress_remaining: 1 at the start of training, 0 at its end
        :raises ValueError: when the schedule gives a negative or non-finite number
        """
        scale = self.schedule(progress_remaining)
        if scale != self.scale:
            self.scale = _check_scale("action_noise", scale)

    def __call__(self) -> npt.NDArray[np.float32]:
        """
        :return: one draw, shape (n_envs, *shape)
        """
        return np.random.normal(0.0, self.scale, size=(self.n_envs, *self.shape)).astype(np.float32)

    def reset(self, indices: Iterable[int] | None = None) -> None:
        """Independent draws: there is nothing to start anew."""

    def __repr__(self) -> str:
        return f"GaussianNoise(scale={self.scale}, shape={self.shape}, n_envs={self.n_envs})"


class ColoredActionNoise(ActionNoise):
    """
    `ColoredNoise` for one environment, from NumPy's global stream; SB3 makes a copy of it for each.

    :param setting: what it is to be
    :param shape: shape of one action, `action_space.shape`; the dimensions are independent
    """

    def __init__(self, setting: ColoredNoise, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.setting = setting
        self._mu, self._sigma = np.zeros(shape), np.full(shape, setting.sigma)  # names of SB3's noise
        self._ahead: npt.NDArray[np.float32] = np.empty((0, *shape), np.float32)  # the rest of the sequence

    def __call__(self) -> npt.NDArray[np.float32]:
        """
        :return: one draw, of the action's shape
        """
        if not len(self._ahead):
            self._ahead = self._sequence()
        now: npt.NDArray[np.float32] = self._ahead[0]
        self._ahead = self._ahead[1:]
        return now

    def reset(self) -> None:
        """The episode has ended: the next draw begins a new sequence."""
        self._ahead = self._ahead[:0]

    def _sequence(self) -> npt.NDArray[np.float32]:
        """White noise with each of its frequencies made larger or smaller, shape (length, *shape)."""
        length, beta = self.setting.length, self.setting.beta
        # In multiples of the slowest wave's. A constant has the frequency 0, where 1 / f^beta has no value: it gets 1.
        frequencies = np.maximum(np.abs(np.fft.fftfreq(length, 1 / length)), 1)
        factors = frequencies ** (-beta / 2)
        factors /= np.sqrt(np.mean(factors**2))  # so that the variance stays
        white = np.random.normal(size=(*self._mu.shape, length))
        waves = np.fft.rfft(white) * factors[: length // 2 + 1]
        colored = self._mu + self._sigma * np.moveaxis(np.fft.irfft(waves, length), -1, 0)
        return colored.astype(np.float32)

    def __repr__(self) -> str:
        return f"ColoredActionNoise({self.setting}, shape={self._mu.shape})"


def make_action_noise(action_noise: NoiseSetting, shape: tuple[int, ...], n_envs: int) -> ActionNoise | None:
    """
    Turn a setting into noise for this many environments; what is noise already passes, so it may run twice.

    :param action_noise: standard deviation (1.0 is half the width of the action range), a schedule of it,
        `OrnsteinUhlenbeck(...)`, `ColoredNoise(...)`, any SB3 `ActionNoise`, or None for no noise
    :param shape: shape of one action, `action_space.shape`
    :param n_envs: number of environments
    :return: the noise, or None
    :raises ValueError: for a negative or non-finite scale, or noise of another shape
    :raises TypeError: for anything else
    """
    if action_noise is None:
        return None
    if isinstance(action_noise, GaussianNoise):
        if (action_noise.shape, action_noise.n_envs) == (shape, n_envs):
            return action_noise
        return GaussianNoise(action_noise.schedule, shape, n_envs)
    if isinstance(action_noise, OrnsteinUhlenbeck):
        action_noise = OrnsteinUhlenbeckActionNoise(
            np.zeros(shape), np.full(shape, action_noise.sigma), action_noise.theta, action_noise.dt
        )
    if isinstance(action_noise, ColoredNoise):
        action_noise = ColoredActionNoise(action_noise, shape)
    if isinstance(action_noise, VectorizedActionNoise) and action_noise.n_envs != n_envs:
        # A model loaded with another number of environments: SB3 wraps the base noise again when learning starts.
        action_noise = action_noise.base_noise
    if isinstance(action_noise, ActionNoise):
        action_noise = _with_dtype(action_noise)
        _check_shape(action_noise, shape)
        return action_noise
    scale = plain_number(action_noise)
    if callable(scale) or (isinstance(scale, float | int) and not isinstance(scale, bool)):
        return GaussianNoise(scale, shape, n_envs)
    raise TypeError(
        "action_noise must be a standard deviation such as 0.1, a schedule of progress_remaining, "
        f"OrnsteinUhlenbeck(...), ColoredNoise(...), an SB3 ActionNoise or None, got {action_noise!r}."
    )


def plain_number(value: object) -> Any:  # noqa: ANN401 - whatever it is
    """
    :param value: anything
    :return: a number of NumPy's or PyTorch's as Python's, anything else as it is
    """
    return value.item() if isinstance(value, np.generic | np.ndarray | th.Tensor) and value.ndim == 0 else value


def noise_scale(action_noise: ActionNoise | None) -> float | None:
    """
    The size of the noise, for the log.

    :param action_noise: what the algorithm holds
    :return: its standard deviation (sigma of an OU process), the mean over dimensions; 1.0 is half the width of the
        action range; 0.0 without noise; None for a class of the user's that does not say
    """
    if action_noise is None:
        return 0.0
    if isinstance(action_noise, GaussianNoise):
        return action_noise.scale
    if isinstance(action_noise, VectorizedActionNoise):
        return noise_scale(action_noise.base_noise)
    sigma = getattr(action_noise, "_sigma", None)
    return None if sigma is None else float(np.mean(sigma))


def _check_scale(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}: 0.1 for example.")
    return float(value) + 0.0  # NumPy refuses to draw with a deviation of -0.0


def drawn(action_noise: ActionNoise, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """
    One draw, looked at: what another class than SB3's will draw cannot be known before.

    :param action_noise: what the algorithm holds
    :param shape: of the actions that it is added to, `(n_envs, *action_space.shape)`
    :return: the draw
    :raises ValueError: for one number that would be spread over several dimensions of an action
    """
    noise = action_noise()
    found = np.shape(noise)
    if found != shape and found != shape[1:] and not (np.size(noise) == 1 == math.prod(shape[1:])):
        raise _wrong_shape(found, shape[1:])
    return noise


def _wrong_shape(found: object, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"action_noise must draw arrays of the shape of one action, {shape}, got {found}: "
        f"for example NormalActionNoise(np.zeros({shape}), 0.1 * np.ones({shape})), or the number 0.1."
    )


def _check_shape(action_noise: ActionNoise, shape: tuple[int, ...]) -> None:
    noises = action_noise.noises if type(action_noise) is VectorizedActionNoise else [action_noise]
    for noise in noises:
        if type(noise).__call__ not in _SB3_DRAWS:
            continue  # asking by a draw would move a random stream: `drawn` looks at the first one
        parts = {name: np.shape(getattr(noise, name, 0.0)) for name in ("_mu", "_sigma", "noise_prev")}
        try:
            found: object = np.broadcast_shapes(*parts.values())
        except ValueError:
            found = " and ".join(map(str, parts.values()))
        if isinstance(noise, OrnsteinUhlenbeckActionNoise):
            found = parts["_mu"] if found == shape else found  # it draws as many numbers as `_mu` has
        if found != shape:
            raise _wrong_shape(found, shape)


_SB3_DRAWS = (NormalActionNoise.__call__, OrnsteinUhlenbeckActionNoise.__call__, ColoredActionNoise.__call__)


def _with_dtype(action_noise: ActionNoise) -> ActionNoise:
    """Noise that SB3 pickled before version 1.8 does not know its dtype, and could not draw: a copy that does."""
    if isinstance(action_noise, NormalActionNoise | OrnsteinUhlenbeckActionNoise):
        if not hasattr(action_noise, "_dtype"):
            action_noise = copy.copy(action_noise)
            action_noise._dtype = np.float32
    elif type(action_noise) is VectorizedActionNoise:
        noises, base_noise = [_with_dtype(noise) for noise in action_noise.noises], _with_dtype(action_noise.base_noise)
        if any(new is not old for new, old in zip(noises, action_noise.noises, strict=True)) or (
            base_noise is not action_noise.base_noise
        ):
            action_noise = copy.copy(action_noise)
            vars(action_noise).update(_noises=noises, _base_noise=base_noise)  # SB3's setters would start them anew
    return action_noise
