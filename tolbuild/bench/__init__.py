"""How fast the build path is against what this machine can do at all: `python -m tolbuild.bench`.

Every figure is a ratio to a contestant measured in the same run, turn by turn, so that it means something on a busy
machine too.
"""
