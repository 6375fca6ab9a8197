"""What a call is looked at by beside its duration, and how exporters say that it went well.

Here because settings and alerts need the names and no compiler; trace_edges.py has the rules.
"""

RECENT = ("usual duration of the last calls", "share of the last calls that failed")
# Of statuses, in any of three ways to write them. Everything else that is there is a failure.
GOOD = ("ok", "unset", "status_code_ok", "status_code_unset", "false", "0")
STATUS = ("status", "code")  # A field with one of these in its name is no flag:
GOOD_STATUS = "1"  # there this is OpenTelemetry's OK.
GOOD_CODES = range(100, 500)  # of HTTP: a server that says 4xx did what it should
