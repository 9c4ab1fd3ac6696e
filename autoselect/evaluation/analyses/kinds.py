"""Names of the analyses."""

CLASSIFIER, FIDELITY, GATES = "classifier", "fidelity", "gates"
KINDS = (CLASSIFIER, FIDELITY, "frequency", GATES, "leak", "similarity")
"""The keys of `ANALYSES` in `run`, and the analysis of a classifier."""
SCORED = (FIDELITY, "leak")
"""Analyses that need answers; the others look at images only."""
PATCHES = "patch_embedding"
"""A site of `fidelity` only, not of the gate: the patch embeddings of a classifier."""
