"""Finding the weight of diversity for a model and its budgets, without labels."""
