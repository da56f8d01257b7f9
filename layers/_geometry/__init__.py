"""Boxes, points, cells and regions of images: what the correspondence layers share."""
