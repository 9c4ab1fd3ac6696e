"""Training on DeepSpeed: assembly, steps, checkpoints, and the check of every update."""
