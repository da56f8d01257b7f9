"""What assembles: graphs, Siamese twins, nets, weights, solvers."""
