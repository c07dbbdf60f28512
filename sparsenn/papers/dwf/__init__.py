"""Deep Weight Factorization (Kolb et al. 2025, arXiv 2502.02496)."""
