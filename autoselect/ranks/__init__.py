"""Processes of a distributed run: start, signals, heartbeats, and work of rank 0 for all."""
