"""Public benchmarks through lmms-eval: the plug-in, and the run over all tasks and budgets."""
