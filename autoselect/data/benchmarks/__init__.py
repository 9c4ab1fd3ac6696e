"""Converters of the official files of public benchmarks to shards, one module per benchmark."""
