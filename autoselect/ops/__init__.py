"""The operators: soft top-K, noise gate, hard top-K, diverse top-K and marginal order.

The file of an operator holds its equation, a readable reference, the autograd and fake registration
of its native kernel, and the public function.
"""

from autoselect.ops._native import build_info, runs_on

__all__ = ["build_info", "runs_on"]
