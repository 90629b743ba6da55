"""Starting what the other packages run on: Ray and an S3 stand-in, on this machine, as processes of our own.

`cluster.local` starts and stops them; `cluster.demo` builds, checks and serves a table on them; `cluster.two_nodes` has
them over two network namespaces, as on two machines.
"""
