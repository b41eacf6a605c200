"""Experiments: compositions of the library's steps, with no mathematics of their own."""
