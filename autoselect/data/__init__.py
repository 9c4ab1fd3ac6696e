"""Shards, their index, the deterministic order, decoding, loading and conversion.

A sample on its way from disk to batch: `index` says where its bytes are, `order` when it is due,
`shards` reads and checks it, `decode` decodes its images, `loader` gives it to the caller's collate
function. `quarantine` counts unusable samples, and `reread` tries them again after a repair.
"""
