"""The plans of every query that runs in the loop, and how many statements a tick costs."""
