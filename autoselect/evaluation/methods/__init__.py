"""Ways to keep K of N visual tokens: baselines and the learned selector."""
