"""Parhi, Wolf and Nowak 2021: sparsity and rank of deep nets that are regularized by the norm of their function."""
