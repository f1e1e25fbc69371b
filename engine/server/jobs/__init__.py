"""What is done beside requests: upkeep by schedule or by hand, and offline batches while the fleet is idle."""

from engine.server.jobs.batch_run import Answer, Ask
from engine.server.jobs.jobs import Jobs
from engine.server.jobs.routes import admin_routes, public_routes

__all__ = ["Answer", "Ask", "Jobs", "admin_routes", "public_routes"]
