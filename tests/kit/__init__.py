"""Real parts to test against: PostgreSQL, a Prefect server, child processes that can be killed, and waiting without sleeping.

Nothing here imports the package under test.
"""
