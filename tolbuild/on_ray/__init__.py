"""The build on a Ray cluster: connecting to it, and a pool of actors that each run one worker.

The only folder of this package that imports Ray.
"""
