"""What the data layers share: files, images, views, pairs and their truth."""
