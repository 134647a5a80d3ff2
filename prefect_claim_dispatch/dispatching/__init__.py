"""From a claim to a Prefect run and back: work, the Prefect objects it runs in, the loop that keeps it going."""
