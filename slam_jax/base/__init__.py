"""What knows nothing of the rest: refusals, options, files, nested mappings."""
