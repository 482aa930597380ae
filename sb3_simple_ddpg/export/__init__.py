"""The trained policy without its training: one file, in ONNX or safetensors."""

from sb3_simple_ddpg.export.files import export_onnx as export_onnx
from sb3_simple_ddpg.export.files import load_policy as load_policy
from sb3_simple_ddpg.export.files import save_policy as save_policy
