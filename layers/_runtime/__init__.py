"""What the layers share: the layer's base class and registry, parameters, checks, dispatch."""
