"""Prefill latency, full against pruned, interleaved."""
