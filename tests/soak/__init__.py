"""A soak: whole processes publish, claim, operate and are broken for minutes or hours; then all is audited.

``python -m tests.soak --minutes M --seed S [--database sqlite|postgresql] [--json FILE]``, or ``make soak``.
"""
