"""Training a model of the family from text: a plain loop, one process or one a device under torchrun.

`python -m tolbuild.train --help` is the command line; `config` states every choice, `loop` is the story.
"""
