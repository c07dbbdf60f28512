"""Spectral layers in the student-teacher setting (Giambagli et al. 2023)."""
