"""The language: prototxt and YAML text to one message tree, with a position on every node."""
