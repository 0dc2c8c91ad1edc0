"""Data sets, read safely and split by rule."""
