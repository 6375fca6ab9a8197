"""What a call is looked at by beside its duration, and how exporters say that it went well.

Here because settings and alerts need the names and no compiler; trace_edges.py has the rules.
"""

RECENT = ("usual duration of the last calls", "share of the last calls that failed")
# Of statuses, in any of three ways to write them. Everything else that is there is a failure.
# A number is decided by its value: 0 and 1 are UNSET and OK of OpenTelemetry, 0 is OK of gRPC.
GOOD = ("ok", "unset", "status_code_ok", "status_code_unset", "false", "0", "1")
GOOD_CODES = range(100, 500)  # of HTTP: a server that says 4xx did what it should
