"""What other people's libraries take for the same work, in their best mode: random rows, SVD, a whole build.

Only this folder knows them; a library that is not installed is left out by name, with the reason.
"""
