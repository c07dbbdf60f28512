"""Sweeps: a grid of settings from a file, trained as stacks, in one table."""
