"""What outlives a process: exact resume, stored replay buffers, agents from and for Stable-Baselines3."""

from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback as ExactCheckpointCallback
