"""Real parts to test against: PostgreSQL, a Prefect server, child processes to kill, and waiting without sleep.

Nothing here imports the package under test.
"""
