"""What row caches would do: token streams as a server sees them, the policies of `tolserve.memory` on them, and the
optimum that knows the future. `python -m tolserve.cache_study` runs it.
"""
