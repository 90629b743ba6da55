"""Rows for a model's steps: where they lie, how they are cached, and how they come from memory nodes.

A `RowSource` is what an engine uses; sources are made of an arena (where rows land), a cache policy and a `RowFetcher`
(a table reader, a client of memory nodes, a reader of the object store, or a cache in front of one of them).
"""
