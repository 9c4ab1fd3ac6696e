"""How answers are found and what counts as right: the names of both choices."""

ANSWERS, MODEL = REFERENCES = ("answers", "model")
"""What counts as right: the answers of the data, or the full model's own."""
GENERATION, LIKELIHOOD, TEXT_LIKELIHOOD = SCORINGS = (
    "generation",
    "likelihood",
    "text_likelihood",
)
"""How answers are found: as generated text, or as the likeliest of the possible ones."""
GREEDY = {"do_sample": False, "num_beams": 1}
"""Arguments of `generate` that make answers greedy, whatever the model's own configuration says."""
