"""The layers' inputs for tests, gradient checks, benchmarks and timing: one module a layer."""
