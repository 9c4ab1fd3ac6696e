"""Turn conversations into token ids: chat templates, placeholders, labels, training batches."""
