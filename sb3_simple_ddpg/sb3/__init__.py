"""What makes the algorithm a plugin of Stable-Baselines3: the base class, collecting, vectorised environments."""
