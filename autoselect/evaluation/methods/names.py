"""Names of the methods, for help texts that must not wait for the import of torch."""

RANDOM = "random"
ORACLES = ("oracle", "oracle_before_encoder")
"""Methods that read the ground truth, and so do not compete with the others."""
METHOD_NAMES = (
    RANDOM,
    "grid",
    "pooling",
    "norm",
    "cls_attention",
    "divprune",
    "visionzip",
    "cdpruner",
    "fastv",
    "scope",
    "score",
    "vispruner",
    "holov",
    "dart",
    "prunesid",
    *ORACLES,
)
"""The keys of `METHODS` in `registry`, in its order."""
