"""What the checks of a run say, and which of them fail: what a twin is expected to break is named."""


def verdicts(run):
    return {check.name: check.verdict for check in run.checks}


def failed(run):
    return [name for name, verdict in verdicts(run).items() if verdict == "fail"]
