"""The deterministic policy as one file: raw observation in, environment action out, in ONNX or in safetensors.

Not here: saving to learn on (`SimpleDDPG.save`), and the files themselves (`onnx_file.py`, `policy_file.py`).
"""

from pathlib import Path

from stable_baselines3.common.type_aliases import GymEnv

from sb3_simple_ddpg.export import onnx_file, policy_file
from sb3_simple_ddpg.export.source import checked_target, describe, write_whole
from sb3_simple_ddpg.sb3.agent import Agent


def export_onnx(model: Agent, path: str | Path, env: GymEnv | None = None) -> None:
    """
    Write the policy as an ONNX file: one input for each key of a Dict with exactly that name (`observation` where
    observations are no Dict), shape (B, ...), in the dtype of the environment's space; one output `action`, shape
    (B, ...), in the environment's range. B is any number.

    Before it is written it is run with onnxruntime and compared with `predict`, on random and on extreme observations.

    :param model: trained, or loaded with its environment
    :param path: to write, or to replace
    :param env: wrapped as for training, where the model has none: VecNormalize's statistics and the layout of images
        come from it
    :raises ValueError: for what cannot be exported, or a difference above 1e-5 of the action range; nothing is written
    :raises ImportError: without the libraries of the extra `export`
    """
    write_whole(checked_target(path), onnx_file.build(describe(model, env)))


def save_policy(model: Agent, path: str | Path, env: GymEnv | None = None) -> None:
    """
    Write the policy as a safetensors file, which holds numbers and a description and no code; see `load_policy`.

    Before it is written it is loaded and compared with `predict`, on random and on extreme observations.

    :param model: trained, or loaded with its environment
    :param path: to write, or to replace
    :param env: as in `export_onnx`
    :raises ValueError: for a policy with layers that the file has no word for; nothing is written
    """
    write_whole(checked_target(path), policy_file.build(describe(model, env)))


def load_policy(path: str | Path) -> policy_file.LoadedPolicy:
    """
    Read what `save_policy` wrote, to act with: no environment, no replay buffer, and nothing in the file is executed.

    :param path: of the file, which may come from a stranger
    :return: an object whose `predict` takes raw observations and gives environment actions
    :raises ValueError: for a file that is not exactly what `save_policy` writes
    """
    return policy_file.load(Path(path))
