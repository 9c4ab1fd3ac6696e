"""A vLLM engine in this process, and what it makes of cases."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams  # noqa: E402

from tests.serving.cases import NEW_TOKENS, Case, Found  # noqa: E402

DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 16,
    "limit_mm_per_prompt": {"image": 4},
    "enforce_eager": True,
    "max_logprobs": -1,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    "distributed_executor_backend": "uni",
}


def engine(model: Path, block: dict[str, Any] | None, **settings: Any) -> LLM:
    overrides = {} if block is None else {"autoselect": block}
    return LLM(str(model), hf_overrides=overrides, **{**DEFAULTS, **settings})


def answers(llm: LLM, cases: Sequence[Case], by_request: bool = False) -> list[Found]:
    """Return what the engine gives; each request names its budget, or the engine's holds."""
    prompts = []
    for case in cases:
        prompt: dict[str, Any] = {"prompt": case.text}
        if case.images:
            prompt["multi_modal_data"] = {"image": case.images}
            if by_request:
                prompt["mm_processor_kwargs"] = {"visual_token_budget": case.budget}
        prompts.append(prompt)
    return generate(llm, prompts)


def generate(llm: LLM, prompts: Sequence[Any]) -> list[Found]:
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, logprobs=-1, ignore_eos=True)
    found = []
    for output in llm.generate(prompts, sampling, use_tqdm=False):
        own = output.outputs[0]
        first = [own.logprobs[0][token].logprob for token in range(len(own.logprobs[0]))]
        found.append(Found(list(own.token_ids), np.array(first)))
    return found


def stop(llm: LLM) -> None:
    llm.llm_engine.engine_core.shutdown()
