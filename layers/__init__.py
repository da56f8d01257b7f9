"""The layers: one file each, its CUDA text beside it."""
