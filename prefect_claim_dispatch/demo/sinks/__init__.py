"""Receivers on loopback that record what really arrives: a mail server and a web server, for the demo and the tests.

They speak the protocols on real sockets, on a port that the system picks. What they should answer can be scripted,
failures and cut connections included; the last word about *delivered twice* or *never delivered* is theirs, not the
sender's.
"""

from prefect_claim_dispatch.demo.sinks.mail import Mail, SmtpReply, SmtpSink
from prefect_claim_dispatch.demo.sinks.web import HttpReply, HttpSink, Request

__all__ = ["HttpReply", "HttpSink", "Mail", "Request", "SmtpReply", "SmtpSink"]
