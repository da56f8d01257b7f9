"""Metrics as layers, as Caffe's Accuracy is one."""
