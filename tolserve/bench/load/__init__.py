"""A load generator for completion endpoints: requests sent on a schedule or by so many clients, streamed and timed.

The fields of its result have the names and meanings of `vllm bench serve`. `run.measure` is the run as a function.
"""
