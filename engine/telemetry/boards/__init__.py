"""What watches the metrics: a dashboard for Grafana, alert rules for Prometheus, and tests of these rules."""

from importlib.resources import files

NAMES = ("dashboard.json", "alerts.yaml", "alerts_test.yaml", "prometheus.yaml")


def board(name: str) -> str:
    """The text of one of them."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
