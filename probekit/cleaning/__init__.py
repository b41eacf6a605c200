"""Filtering and relabelling of weak labels, and what they amount to."""
