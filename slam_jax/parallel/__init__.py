"""Devices and processes: the mesh and what is split over it, random keys, start-up."""
