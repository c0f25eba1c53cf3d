"""Samplers as one program each, step ladders, reports, picture files."""
