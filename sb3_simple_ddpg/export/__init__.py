"""The trained policy without its training: ONNX, safetensors, films."""

from sb3_simple_ddpg.export.source import export_onnx as export_onnx
from sb3_simple_ddpg.export.source import load_policy as load_policy
from sb3_simple_ddpg.export.source import save_policy as save_policy
