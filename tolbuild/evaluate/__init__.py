"""What a model is worth on text: perplexity and samples, with dense feed-forward networks or with a table's rows.

Runs the reference model of tolbuild.model, no cache and no server: slow, plain, and what everything else is held to.
"""
