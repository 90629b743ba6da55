"""Serving on a Ray cluster: Serve deployments of the nodes, the directory that finds them, putting them up and down.

The only folder of this package that imports Ray. Rows and tokens never travel through Ray: nodes open sockets.
"""
