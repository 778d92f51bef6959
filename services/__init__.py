"""The processes and everything that touches the world: command line, workers, adapters."""
