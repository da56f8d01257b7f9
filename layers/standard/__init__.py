"""Caffe's own layers on torch's functions, with Caffe's exact semantics."""
