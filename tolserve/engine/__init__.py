"""The serving engine: continuous batching over a block KV cache, with memory rows looked up through a `RowSource`.

Plain torch: no Ray, no HTTP. `engine.Engine` is the class, `build.build_engine` makes one from a checkpoint;
`request` (importable without torch) is what callers exchange with it.
"""
