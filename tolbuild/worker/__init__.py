"""What happens inside a worker: rows from checkpoint or spool, sums, fits and codes. tolbuild.build puts it together."""
