"""Deployable entry points: what `prefect.yaml` names."""
