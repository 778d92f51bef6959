"""One file per outside technology, each behind a port of pipeline/ports.py."""
