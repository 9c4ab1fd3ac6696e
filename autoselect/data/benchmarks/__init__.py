"""Public benchmarks in their official files, to evaluation shards: one small file per benchmark."""
