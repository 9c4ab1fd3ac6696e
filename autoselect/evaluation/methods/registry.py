"""Registry of methods that keep K of N visual tokens, all called alike.

A method is a function `(context, budget) -> Kept`. It reads the projector outputs and returns K of
them with their positions in the full sequence. To add one, write such a function and add a `Method`
to `METHODS`, and its name to `names`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from autoselect.config import ConfigError, GateSite
from autoselect.config.bounds import at_least
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.methods import (
    coverage,
    duplication,
    merging,
    ranking,
    salience,
)
from autoselect.evaluation.methods.context import PATCHES, Kept, SelectionContext
from autoselect.evaluation.methods.names import RANDOM
from autoselect.pruning.selector import Selector


@dataclass(frozen=True)
class Method:
    """A named way to keep K tokens.

    Attributes:
        name: name in reports.
        source: paper or short description.
        keep: (context, budget) -> Kept.
        needs: required fields of `SelectionContext`.
        per_question: true if the choice depends on the question, not only on the image.
        merges: true if kept tokens are means of several, not tokens of the image.
        site: where tokens are removed; before the encoder, it runs again for each budget.
        seeds: seeds whose scores are averaged; one for deterministic methods.
    """

    name: str
    source: str
    keep: Callable[[SelectionContext, int], Kept]
    needs: tuple[str, ...] = ()
    per_question: bool = False
    merges: bool = False
    site: GateSite = "after_projector"
    seeds: tuple[int, ...] = (0,)


def selector_method(selector: Selector, name: str = SELECTOR) -> Method:
    """Return a trained selector as a method."""
    site = selector.site

    def keep(context: SelectionContext, budget: int) -> Kept:
        _, positions = selector.select(context.scored(site), budget)
        return context.encoded(positions) if site == PATCHES else context.at(positions)

    rule = "hard top-K"
    if diversity := selector.diversity:
        form = "maximal marginal relevance, the form of IDPruner, arXiv 2602.13315"
        rule = f"greedy with diversity {diversity} ({form})"
    source = f"AutoSelect (arXiv 2603.07135): learned scores, {rule}"
    if site != "after_projector":
        source = f"{source}; {site.replace('_', ' the ')}"
    return Method(name, source, keep, site=site)


def _oracle_patches(context: SelectionContext, budget: int) -> Kept:
    return context.encoded(coverage.oracle(context, budget).positions)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(RANDOM, "uniformly random positions, mean of several seeds", ranking.random_tokens),
        Method("grid", "evenly spaced positions of the image", coverage.uniform_grid),
        Method(
            "pooling",
            "average of the tokens nearest each grid point",
            merging.average_pooling,
            merges=True,
        ),
        Method("norm", "largest L2 norm of the token", ranking.feature_norm),
        Method(
            "cls_attention",
            "attention of the vision tower's CLS token (FasterVLM, arXiv 2412.01818)",
            ranking.class_attention,
            needs=("class_attention",),
        ),
        Method("divprune", "greedy max-min diversity (arXiv 2503.02175)", coverage.divprune),
        Method(
            "visionzip",
            "VisionZip-style: dominant by CLS attention, the rest merged (arXiv 2412.04467)",
            merging.visionzip,
            needs=("class_attention",),
            merges=True,
        ),
        Method(
            "cdpruner",
            "CDPruner-style: determinantal diversity given the question (arXiv 2506.10967)",
            coverage.cdpruner,
            needs=("question",),
            per_question=True,
        ),
        Method(
            "fastv",
            "FastV-style: LLM layer-2 attention of the last token, then removed at the input "
            "(arXiv 2403.06764)",
            ranking.llm_attention,
            needs=("llm_attention",),
            per_question=True,
        ),
        Method(
            "scope",
            "SCOPE: salience x gain in coverage, greedy (arXiv 2510.24214)",
            salience.scope,
            needs=("class_attention",),
        ),
        Method(
            "score",
            "SCoRe: weighted k-center, cosine distance x salience^0.8 (CVPR 2026)",
            salience.score,
            needs=("class_attention",),
        ),
        Method(
            "vispruner",
            "VisPruner: half by salience, half by removing duplicates (arXiv 2412.01818)",
            salience.vispruner,
            needs=("class_attention",),
        ),
        Method(
            "holov",
            "HoloV: budget shared over 16 crops by salience (arXiv 2510.02912)",
            salience.holov,
            needs=("class_attention",),
        ),
        Method(
            "dart",
            "DART-style: pivots by norm, and what resembles them least, at the input "
            "(arXiv 2502.11494)",
            duplication.dart,
        ),
        Method(
            "prunesid",
            "PruneSID: groups by principal components, duplicates dropped in each "
            "(arXiv 2603.09480)",
            duplication.prunesid,
            needs=("class_attention",),
        ),
        Method(
            "oracle",
            "ground-truth boxes: one token per object, then even coverage of the image",
            coverage.oracle,
            needs=("boxes",),
        ),
        Method(
            "oracle_before_encoder",
            "the same tokens, as patches that alone enter the vision encoder",
            _oracle_patches,
            needs=("boxes", "patches"),
            site="before_encoder",
        ),
    )
}


def choose_methods(names: str, random_seeds: int = 3) -> tuple[Method, ...]:
    """Return methods by comma-separated name.

    Args:
        names: names in `METHODS`, `all` or `none`.
        random_seeds: number of seeds of the random method.

    Raises:
        ConfigError: an unknown name, or fewer than one seed.
    """
    at_least(1, "random_seeds", random_seeds)
    sets = {"all": list(METHODS), "none": []}
    wanted = sets.get(names.strip(), [name.strip() for name in names.split(",")])
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise ConfigError(
            f"methods={unknown[0]!r} is unknown; choose all, none or some of {', '.join(METHODS)}"
        )
    return tuple(
        replace(METHODS[name], seeds=tuple(range(random_seeds)))
        if name == RANDOM
        else METHODS[name]
        for name in dict.fromkeys(wanted)
    )
