"""A training run on DeepSpeed: assembly, steps, checkpoints, and guards of the updates."""
