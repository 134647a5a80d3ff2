"""The demo: the whole thing on an embedded default, with receivers on loopback that record what really arrives."""
