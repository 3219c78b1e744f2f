"""A sweep's report: tables, figures and verdicts, from the tracking store alone."""
