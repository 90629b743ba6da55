"""The row path's innermost loops: compiled where there was a compiler at installation, else NumPy and plain Python.

Both give the same bytes and refuse the same requests; the compiled ones are sooner done.
"""
