from tests.evaluation.conftest import model_folder, selector_folder, shards

__all__ = ["model_folder", "selector_folder", "shards"]
