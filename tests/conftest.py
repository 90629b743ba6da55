"""Puts this folder on the import path, for the helpers that tests of several folders share; no test has a deadline, and
Ctrl-C means to the processes that tests start what it usually does, even where the tests run in the background.
"""

import signal

from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
