"""The method of the paper: Scorer, gate, Denoiser, and one training step through a frozen VLM."""
