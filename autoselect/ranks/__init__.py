"""The processes of a distributed run: start, signals, heartbeats, and decisions of rank 0."""
