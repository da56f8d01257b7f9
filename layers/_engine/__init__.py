"""What every layer is made of: definition, operators, registry, parameters, checks, kernels."""
