"""Benchmarks of the serving path: `python -m tolserve.bench rows|engine|gpu`.

Each alternates its contestants in one run, prints what it runs on, and ends with one line of JSON.
"""
