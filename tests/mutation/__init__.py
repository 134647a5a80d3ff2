"""Mutation testing of the code that claims, settles and rescues: one small mistake at a time, and a test must fail.

Our own, because neither library fits: mutmut leaves decorated functions alone, and every statement is built under
``@cache``; cosmic-ray starts an interpreter for each mutant; and neither knows what is a condition of a query.
"""
