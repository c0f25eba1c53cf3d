"""Metrics of drawn pictures, one file each."""
