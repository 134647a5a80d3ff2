"""The main job under a real Prefect server, as a user sees it."""
