"""L1-regularization: The path to sparsity (Schulz and Poggio): its six experiments, tables and figures."""
