"""The second reference VLM: SigLIP and Qwen2, trained on scenes and pages."""
