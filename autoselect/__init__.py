"""AutoSelect: learn which visual tokens matter to a frozen vision-language model."""

__version__ = "0.1.0"
