"""Files that were written when the package was one folder: they load, and learning goes on as it would have gone on.

`before_the_rooms/` was written at commit 2c21141: 60 timesteps of Pendulum; `weights_at_100.npz` after 40 more there.
`exported.safetensors` is of commit 7209fd0, when this package read the file itself: two keys, normalized.
"""

import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from sb3_simple_ddpg import MlpPolicy, SimpleDDPG
from sb3_simple_ddpg.export import load_policy

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


def test_an_exported_policy_of_then_loads_and_acts_as_it_acted():
    policy = load_policy(FILES / "exported.safetensors")
    first = {"a": [-0.74285960, -0.00144427514, 0.20299672], "b": [0.12857020276919962, 0.49927786244011496]}
    second = {"a": [-0.94262201, -0.70414782, 0.85642207], "b": [0.6014983576233575, 0.028689008371944547]}
    rows = {"a": np.array([first["a"], second["a"]], np.float32), "b": np.array([first["b"], second["b"]])}
    # Printed at that commit. Another processor may round otherwise.
    then = [[0.5460678339004517, 0.21124738454818726], [0.4031243324279785, 0.2285829335451126]]
    np.testing.assert_allclose(policy.predict(rows)[0], then, rtol=1e-5, atol=1e-6)
    assert policy.source["timesteps"] == 20
