"""The second reference domain: receipts, tables, forms, charts, labels and signs."""
