"""Published results of other methods on LLaVA-1.5-7B, shown beside measured ones.

Values are average retention in per cent of the full model, as each paper or repository gives it,
read in November 2026. Benchmarks and evaluation code differ between papers.
"""

MODEL = "llava-1.5-7b"

FULL_MODEL = {
    "gqa": 61.9,
    "mmbench_en_dev": 64.7,
    "mmbench_cn_dev": 58.1,
    "mme": 1862.0,
    "pope": 85.9,
    "scienceqa_img": 69.5,
    "vqav2_val": 78.5,
    "textvqa_val": 58.2,
    "vizwiz_vqa_val": 50.1,
}
"""Scores of the full model with 576 tokens, as these papers repeat them."""

SOURCES = {
    "FastV": "arXiv 2403.06764",
    "PyramidDrop": "arXiv 2410.17247",
    "SparseVLM": "arXiv 2410.04417",
    "DART": "arXiv 2502.11494",
    "VisionZip": "arXiv 2412.04467",
    "HoloV": "the method's own table",
    "SCOPE": "the method's own table",
    "PIO-FVLM": "the method's own table",
    "TwigVLM++": "the method's own table; six benchmarks, K averaged over layers",
}

RETENTION = {
    192: dict(zip(SOURCES, (89.0, 96.2, 97.2, 98.3, 97.8, 98.7, 98.3, 98.9, 99.6), strict=True)),
    128: dict(zip(SOURCES, (83.2, 94.0, 95.6, 97.0, 96.4, 97.2, 97.5, 98.1, 99.2), strict=True)),
    64: dict(zip(SOURCES, (74.0, 74.4, 90.6, 92.8, 93.0, 94.4, 95.4, 96.6, 97.7), strict=True)),
}
"""K -> method -> average retention in per cent."""

PAPER = {
    "vqav2_val": 76.6,
    "gqa": 57.8,
    "textvqa_val": 55.3,
    "mmbench_en_dev": 63.4,
    "mmbench_cn_dev": 57.5,
    "mme": 1790.0,
}
"""Scores in AutoSelect's paper (arXiv 2603.07135, read on an aggregator's page; K not stated)."""

PAPER_RETENTION = {"its table, K not stated": 98.2, "abstract, ten benchmarks": 96.5}


def published_rows(model: str) -> list[dict[str, object]]:
    """Return the published rows for a model; empty if none were collected."""
    if MODEL not in model.lower():
        return []
    rows: list[dict[str, object]] = [
        {"method": name, "budget": budget, "retention": value, "source": SOURCES[name]}
        for budget, table in RETENTION.items()
        for name, value in table.items()
    ]
    rows += [
        {
            "method": "AutoSelect (paper)",
            "budget": None,
            "retention": value,
            "source": f"arXiv 2603.07135, {where}",
        }
        for where, value in PAPER_RETENTION.items()
    ]
    return rows
