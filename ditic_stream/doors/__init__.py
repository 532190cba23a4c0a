"""Doors: the ways in for other programs."""
