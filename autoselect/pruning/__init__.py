"""What users load and attach: a selector that prunes the visual tokens of a stock model."""
