"""A stand-in for Modal's control plane on loopback, which really runs the functions: a container is a subprocess."""
