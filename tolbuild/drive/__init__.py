"""What the driver of a build does: hand out cells, tell how far it is, resume, commit and sum up."""
