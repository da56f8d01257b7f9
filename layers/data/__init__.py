"""Data layers: image pairs with correspondences, and the readers of the data sets."""
