"""What a routing decision costs: the way found, its replica given out and taken back."""

import pytest

from engine.engine import Engine
from engine.routing import Router
from sim.world import SimClock

HELD_PER_REPLICA = 4

pytestmark = pytest.mark.benchmark(group="frequent")


def make_engine(settings, replicas, strategy):
    lines = [f"fleet.replicas={replicas}", f"strategy={strategy}"]
    return Engine(settings(*lines).engine, SimClock())


def key_of(engine):
    """What the router knows the fleet's only model by."""
    return engine.settings.fleet.models[0].key


def load(router, engine, request_of):
    """Requests in flight of unequal size, as a busy fleet has them."""
    for number in range(HELD_PER_REPLICA * len(engine.replicas)):
        router.route(request_of(100 + 37 * number, number), key_of(engine), 0).next(0)


def decision(router, model, request):
    def route():
        with router.route(request, model, 0) as way:
            return way.next(0)

    return route


@pytest.mark.parametrize("replicas", [1, 3, 5, 16])
@pytest.mark.parametrize("strategy", ["round_robin", "least_loaded"])
def test_route(measure, settings, request_of, strategy, replicas):
    engine = make_engine(settings, replicas, strategy)
    router = Router(engine.settings.routing)
    for replica in engine.replicas.values():
        router.add(replica)
    load(router, engine, request_of)
    assert measure(decision(router, key_of(engine), request_of()), with_p99=True) in engine.replicas.values()


@pytest.mark.parametrize("replicas", [5])
def test_route_with_the_decision_log(measure, settings, request_of, replicas):
    engine = make_engine(settings, replicas, "least_loaded")
    load(engine.router, engine, request_of)
    assert (
        measure(decision(engine.router, key_of(engine), request_of()), with_p99=True)
        in engine.replicas.values()
    )
