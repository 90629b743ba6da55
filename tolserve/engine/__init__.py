"""The serving engine: continuous batching over a block KV cache, memory rows looked up through a `RowSource`.

Plain torch: no Ray, no HTTP. `engine.Engine` is the class, `load.build_engine` makes one from addresses;
`request` (importable without torch) is what callers exchange with it.
"""
