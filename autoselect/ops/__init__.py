"""The three operators of the method: soft top-K, noise gate, hard top-K.

`soft_top_k.py`, `noise_gate.py`, `hard_top_k.py` hold the equation, a readable reference and the
public function of each; import them from there.
"""
