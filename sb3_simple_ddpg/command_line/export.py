"""`simple-ddpg export`. Not here: the files (`export/files.py`)."""

from pathlib import Path

import tyro

from sb3_simple_ddpg.experiment import runs


def export(run: tyro.conf.Positional[Path], to: Path) -> int:
    """
    Write the policy of a run as one file that takes raw observations and gives actions of the environment.

    :param run: folder that `simple-ddpg train` wrote
    :param to: file to write, or to replace: .onnx for any runtime, .safetensors for load_policy
    :return: exit status
    """
    from sb3_simple_ddpg.export.files import export_onnx, save_policy
    from sb3_simple_ddpg.export.source import checked_target

    writers = {".onnx": export_onnx, ".safetensors": save_policy}
    if to.suffix not in writers:
        raise ValueError(f"--to must end in {' or '.join(writers)}, got {to}.")
    checked_target(to)
    model = runs.load_run(run)
    writers[to.suffix](model, to)
    env = model.get_env()
    assert env is not None
    env.close()
    print(f"Wrote {to}, {to.stat().st_size} bytes, checked against predict.")
    return 0
