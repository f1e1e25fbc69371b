"""What queueing theory says of a line and its servers: the yardstick of the simulated clock.

Loads are offered ones, `a` = arrival rate x mean service time: so many servers would be busy if nobody were turned
away. Times are in mean service times. Sources: Kleinrock, "Queueing Systems" I and II (1975, 1976); for the closed
loop Reiser and Lavenberg, "Mean-value analysis of closed multichain queueing networks" (JACM 1980).
"""

from collections.abc import Sequence

NOTHING = 1e-15


def erlang_b(servers: int, a: float) -> float:
    """The share that finds all servers busy and goes away, whatever the law of service."""
    return turned_away(servers, servers, a)


def erlang_c(servers: int, a: float) -> float:
    """The share that has to wait in M/M/c, a < c."""
    blocked = erlang_b(servers, a)
    return servers * blocked / (servers - a * (1 - blocked))


def wait_of_many(servers: int, a: float) -> float:
    """The mean wait in M/M/c."""
    return erlang_c(servers, a) / (servers - a)


def wait_of_one(a: float, scv: float) -> float:
    """The mean wait in M/G/1, by the squared coefficient of variation of service (Pollaczek and Khinchine)."""
    return a * (1 + scv) / (2 * (1 - a))


def sojourn_shared(a: float) -> float:
    """The mean time in M/G/1 with processor sharing, whatever the law of service."""
    return 1 / (1 - a)


def states(servers: int, places: int, a: float) -> list[float]:
    """How likely each number from 0 to `places` is in M/M/c/K; K counts those who are served too."""
    weights = [1.0]
    for count in range(1, places + 1):
        weights.append(weights[-1] * a / min(count, servers))
    total = sum(weights)
    return [weight / total for weight in weights]


def turned_away(servers: int, places: int, a: float) -> float:
    """The share that finds no place in M/M/c/K; where nobody may wait, that of Erlang's B. However large K is."""
    refused = 1.0
    for count in range(1, places + 1):
        rate = a / min(count, servers)
        refused = rate * refused / (1 + rate * refused)
    return refused


def sojourn_bounded(servers: int, places: int, a: float) -> float:
    """The mean time of those who find a place in M/M/c/K."""
    chances = states(servers, places, a)
    inside = sum(count * chance for count, chance in enumerate(chances))
    return inside / (a * (1 - chances[-1]))


def waits_by_class(loads: Sequence[float], scv: float = 1.0) -> list[float]:
    """The mean wait of each class before one server that nobody interrupts, the first class first (Cobham)."""
    residual, upto, found = sum(loads) * (1 + scv) / 2, 0.0, []
    for each in loads:
        found.append(residual / ((1 - upto) * (1 - upto - each)))
        upto += each
    return found


def sojourns_by_class(loads: Sequence[float], scv: float = 1.0) -> list[float]:
    """The mean time of each class where the first interrupts the others, which go on later (preemptive resume)."""
    residual, upto, found = 0.0, 0.0, []
    for each in loads:
        residual += each * (1 + scv) / 2
        found.append(1 / (1 - upto) + residual / ((1 - upto) * (1 - upto - each)))
        upto += each
    return found


def sojourn_closed(users: int, think: float) -> float:
    """The mean time at one server of users who think in between, by mean value analysis."""
    found, here = 0.0, 0.0
    for count in range(1, users + 1):
        found = 1 + here
        here = count / (think + found) * found
    return found


def sojourn_in_turn(queues: int, load: float) -> float:
    """The mean time where each of several queues gets every n-th request: E_n/M/1; `load` is that of a server."""
    s = 0.5
    for _ in range(10_000):
        s = (queues * load / (queues * load + 1 - s)) ** queues
    return 1 / (1 - s)


def sojourn_of_choices(choices: int, load: float) -> float:
    """The mean time where each request joins the shortest of so many of endlessly many queues (Mitzenmacher 1996)."""
    total, power = 0.0, 1
    while (term := load ** ((power * choices - choices) / (choices - 1))) > NOTHING:
        total, power = total + term, power * choices
    return total
