"""What happens inside a worker: rows from checkpoint or spool, sums, fits, codes. tolbuild.build joins them."""
