"""Example processors, one file each: copy the one that is nearest to what you need.

A plain function that talks to a server: `email_welcome`. One that tells *later* from *never*: `webhook_deliver`. A
Prefect flow
with steps of its own: `report_generate`. All key their effect by ``action.key``, since an action may run more than
once.
"""
