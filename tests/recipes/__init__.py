"""The programs of the documentation, run."""
