"""The three operators of the method: soft top-K, noise gate, hard top-K.

`soft_top_k.py`, `noise_gate.py`, `hard_top_k.py` hold the equation, a readable reference, the
autograd and fake registration of the native kernel, and the public function of each.
"""

from autoselect.ops._native import build_info, runs_on

__all__ = ["build_info", "runs_on"]
