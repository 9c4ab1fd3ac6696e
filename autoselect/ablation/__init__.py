"""Ablations: train and evaluate variants of the method over several seeds, and compare them."""
