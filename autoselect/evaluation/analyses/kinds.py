"""Names of the analyses."""

CLASSIFIER, FIDELITY, GATES, LEAK = "classifier", "fidelity", "gates", "leak"
SIMILARITY = "similarity"
KINDS = (CLASSIFIER, FIDELITY, "frequency", GATES, LEAK, SIMILARITY)
"""The keys of `ANALYSES` in `run`, and the analysis of a classifier."""
SCORED = (FIDELITY, LEAK)
"""Analyses that need answers; the others look at images only."""
PATCHES = "patch_embedding"
"""A site of `fidelity` only, not of the gate: the patch embeddings of a classifier."""
