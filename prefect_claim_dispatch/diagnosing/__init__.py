"""Diagnosing: what is wrong with a database, its action table, or what Prefect does with it, and what to do.

`facts` are asked for (`asking`, `scheduling`), and judged by pure functions (`judging`); `examining` puts it together.
"""
