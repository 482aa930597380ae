"""In any setting that can be drawn: compiled updates give the plain path's weights, and the plain path SB3's DDPG's.

Not here: the settings and the comparison (`differential.py`). `make fuzz` draws for as long as it is told.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from stable_baselines3 import DDPG

from tests.differential import (
    TIMES_ITSELF,
    TOLERANCE,
    Setting,
    check_plain_against_compiled,
    check_plain_against_sb3,
    drawn_settings,
    largest_differences,
    make,
    train,
)

ALL_OF_THEM = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.mark.slow
@pytest.mark.usefixtures("recorded_or_compiled")
@settings(max_examples=8, **ALL_OF_THEM)
@given(setting=drawn_settings())
def test_compiled_updates_give_the_plain_path_s_weights_in_any_drawn_setting(
    setting: Setting, compiled_calls: list[str]
) -> None:
    check_plain_against_compiled(setting, compiled_calls)


@settings(max_examples=40, **ALL_OF_THEM)
@given(setting=drawn_settings(for_sb3=True))
def test_plain_updates_give_sb3_s_weights_in_any_drawn_setting(setting: Setting) -> None:
    check_plain_against_sb3(setting)


@pytest.mark.parametrize("what", ["learning_rate", "tau", "gamma"])
def test_the_comparison_sees_a_change_of_one_percent(what: str) -> None:
    """A test that cannot fail is none: each of these must be told from itself."""
    arguments: dict[str, Any] = {"learning_rate": 1e-2, "tau": 0.3, "gamma": 0.9}
    kwargs = {"net_arch": [16], "optimizer_kwargs": {"eps": 1e-3}}
    setting = Setting("vector", (2,), arguments, kwargs, batch_size=32)
    models = [make(setting), make(setting)]
    setattr(models[1], what, 1.01 * arguments[what])
    models[1]._setup_lr_schedule()
    for model in models:
        train(setting, model)
    assert max(largest_differences(*models).values()) > TOLERANCE


def test_with_adam_s_own_eps_two_models_of_sb3_stay_as_close_as_this_file_asks() -> None:
    """TIMES_ITSELF, tried on SB3's DDPG alone: two roundings of one model against a third."""
    from tests.differential import disturb

    for seed in range(4):
        setting = Setting("vector", (2,), {"learning_rate": 1e-3}, {"net_arch": [16, 16]}, batch_size=32, seed=seed)
        models = [make(setting, DDPG) for _ in range(3)]
        for index, model in enumerate(models[1:]):
            disturb(model, index)
        for model in models:
            train(setting, model)
        one, other = (max(largest_differences(models[0], model).values()) for model in models[1:])
        assert np.isfinite(one)
        assert one <= max(TOLERANCE, TIMES_ITSELF * other)
