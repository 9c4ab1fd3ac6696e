"""Prefill latency of the full and the pruned model, measured in interleaved rounds."""
