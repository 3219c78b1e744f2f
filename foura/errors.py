"""What a user did or gave that cannot work, said in one sentence. Everything else that is raised is a bug of ours."""


class UserError(Exception):
    """One clear sentence: what was found, and what to do about it. Ends a run with a non-zero exit and no traceback."""


class Diverged(UserError):
    """The loss became NaN or infinite. The run ends in state "diverged", which is a result, not a crash."""


class Busy(UserError):
    """Another process is at the same run."""
