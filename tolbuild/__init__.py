"""From a trained MemoryLLM checkpoint to a table of token-wise lookups (ToLs).

The core (`rows`, `compress`, `table`, `checkpoint`, `model`) runs with torch and numpy alone; `on_ray` spreads it over
a cluster.
"""
