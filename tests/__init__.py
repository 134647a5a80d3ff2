"""The tests. A package, so that child processes can import their parts by name."""
