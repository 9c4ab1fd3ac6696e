"""Shards, their index, the deterministic order, decoding, loading and conversion.

One sample from disk to batch: `index` says where its bytes are, `order` says when it is due,
`shards` reads and checks it, `decode` turns its pictures into pixels, `loader` hands them to the
caller's collate function, `quarantine` counts what could not be read, and `reread` sees whether it
can be read now.
"""
