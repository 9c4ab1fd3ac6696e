"""The second reference VLM: SigLIP and Qwen2, trained plainly on scenes and pages."""
