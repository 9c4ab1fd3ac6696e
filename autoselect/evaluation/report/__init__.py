"""The report of an evaluation: tables, files, page, and MLflow runs."""
