"""Turn conversations into training batches: token ids, labels, images."""
