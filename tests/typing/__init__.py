"""The public API as a type checker sees it. The files are checked, never run."""
