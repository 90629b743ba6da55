"""Moving requests and rows between processes: the row protocol (`frames`), links that carry it (TCP, in process) and a
wrapper that delays them. Nothing here knows what a row is.
"""
