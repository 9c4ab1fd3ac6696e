"""Public benchmarks through lmms-eval: a model plug-in, and a run over all tasks and budgets."""
