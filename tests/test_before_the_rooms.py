"""Files that were written when the package was one folder: they load, and learning goes on as it would have gone on.

`before_the_rooms/` was written at commit 2c21141: 60 timesteps of Pendulum; `weights_at_100.npz` after 40 more there.
"""

import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from sb3_simple_ddpg import MlpPolicy, SimpleDDPG

FILES = Path(__file__).parent / "before_the_rooms"
OBSERVATION = np.array([0.5, -0.5, 1.0], np.float32)


def test_a_zip_a_buffer_and_a_policy_of_before_the_rooms_are_loaded():
    model = SimpleDDPG.load(FILES / "agent.zip", gym.make("Pendulum-v1"), device="cpu")
    model.load_replay_buffer(FILES / "buffer.pkl")
    assert model.num_timesteps == 60
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 60
    alone = MlpPolicy.load(FILES / "policy.pth")
    np.testing.assert_array_equal(model.predict(OBSERVATION)[0], alone.predict(OBSERVATION)[0])


def test_a_checkpoint_of_before_the_rooms_goes_on_as_it_would_have_gone_on(tmp_path: Path):
    folder = shutil.copytree(FILES / "checkpoints", tmp_path / "checkpoints")
    model = SimpleDDPG.resume(folder, gym.make("Pendulum-v1"), device="cpu")
    model.learn(40, reset_num_timesteps=False)
    with np.load(FILES / "weights_at_100.npz") as then:
        now: dict[str, npt.NDArray[np.float32]] = {k: v.numpy() for k, v in model.policy.state_dict().items()}
        assert set(then.files) == set(now)
        for name in then.files:
            # Another processor may round sums in another order.
            np.testing.assert_allclose(now[name], then[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # Printed at that commit, after the same 40 timesteps.
    assert model.predict(OBSERVATION)[0] == pytest.approx(-1.1303651, abs=1e-4)
