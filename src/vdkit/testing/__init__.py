"""Published test helpers: conformance suites and a simulated host as a pytest fixture."""
