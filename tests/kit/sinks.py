"""The sinks of the demo, under the name that tests import: one implementation, exercised by both."""

from __future__ import annotations

from prefect_claim_dispatch.demo.sinks import HttpReply, HttpSink, Mail, Request, SmtpReply, SmtpSink

__all__ = ["HttpReply", "HttpSink", "Mail", "Request", "SmtpReply", "SmtpSink"]
