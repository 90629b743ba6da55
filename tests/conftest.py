"""Puts this folder on the import path, for the helpers that tests of several folders share; no test has a deadline."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
