"""What queueing theory says of a line and its servers: the yardstick of the simulated clock.

Loads are offered ones, `a` = arrival rate x mean service time: so many servers would be busy if nobody were turned
away. Times are in mean service times. Sources: Kleinrock, "Queueing Systems" I and II (1975, 1976); for the closed
loop Reiser and Lavenberg, "Mean-value analysis of closed multichain queueing networks" (JACM 1980).
"""

from collections.abc import Sequence
from itertools import accumulate
from math import ceil, exp, expm1, inf, isinf, log

NOTHING = 1e-15
MOST_PLACES = 100_000
"""Of a line that is looked at number by number; one that gets longer than that no run shows in the long run."""
MOST_EXPONENT = 700.0  # of e, that is a float

Moments = tuple[float, float, float]
"""The second, third and fourth moment of a service time the mean of which is 1."""

EXPONENTIAL: Moments = (2.0, 6.0, 24.0)


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
    return chances(*rates(servers, places, a))


def rates(servers: int, places: int, a: float) -> tuple[list[float], list[float]]:
    """The rates at which the number in M/M/c/K grows by one, from 0 on, and falls, from 1 on."""
    return [a] * places, [float(min(count, servers)) for count in range(1, places + 1)]


def chances(births: Sequence[float], deaths: Sequence[float]) -> list[float]:
    """How likely each number is, from 0 on, by the rates at which it grows by one, and falls back from there."""
    logs = [0.0, *accumulate(log(up / down) for up, down in zip(births, deaths, strict=True))]
    most = max(logs)  # products of many rates would not be floats
    weights = [exp(each - most) for each in logs]
    total = sum(weights)
    return [weight / total for weight in weights]


def long_run_variance(
    births: Sequence[float], deaths: Sequence[float], values: Sequence[float], price: float = 0.0
) -> float:
    """How much the mean over a time of what a birth-and-death process is worth varies, times that time.

    `values` are those of each number, and each fall costs the `price`; rates as in `chances`. (Burman, "A functional
    central limit theorem for birth-death processes", 1980; Whitt, "Asymptotic formulas for Markov processes with
    applications to simulation", Operations Research 40(2), 1992.)
    """
    known = chances(births, deaths)
    worth = [value - price * rate for value, rate in zip(values, (0.0, *deaths), strict=True)]
    mean = sum(chance * each for chance, each in zip(known, worth, strict=True))
    upto = accumulate(chance * (each - mean) for chance, each in zip(known, worth, strict=True))
    flows = [chance * birth for chance, birth in zip(known, births, strict=False)]
    return sum(
        (part**2 + (price * flow - part) ** 2) / flow
        for part, flow in zip(upto, flows, strict=False)
        if flow > NOTHING
    )


def turned_away(servers: int, places: int, a: float) -> float:
    """The share that finds no place in M/M/c/K; where nobody may wait, that of Erlang's B. However large K is."""
    refused = 1.0
    for count in range(1, min(places, servers) + 1):
        rate = a / count
        refused = rate * refused / (1 + rate * refused)
    waiting, fall = max(0, places - servers), -log(a / servers)
    if not refused or waiting * fall > MOST_EXPONENT:
        return 0.0
    # with each place more, 1 / refused goes from x to 1 + x e^fall
    more = expm1(waiting * fall) / expm1(fall) if fall else waiting
    return 1 / (exp(waiting * fall) / refused + more)


def sojourn_bounded(servers: int, places: int, a: float) -> float:
    """The mean time of those who find a place in M/M/c/K."""
    known = states(servers, places, a)
    inside = sum(count * chance for count, chance in enumerate(known))
    return inside / (a * (1 - known[-1]))


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


def spread_of_one(a: float, moments: Moments) -> float:
    """How much the mean of n waits in M/G/1 varies, times n, by the moments of service.

    Whoever brings S and finds W to do before him adds J = W - E[W] + k (W S + S^2 / 2), k = a / (1 - a), to the sum
    of all waits less their mean: by his own, and by those of whoever comes after him. A sum of jumps at Poisson times
    varies by the mean of their squares. W has the moments of the work in M/G/1 (Takacs, "A single-server queue with
    Poisson input", Operations Research 10(3), 1962).
    """
    second, third, fourth = moments
    if isinf(fourth):
        return inf
    k = a / (1 - a)
    wait = k * second / 2
    square = 2 * wait**2 + k * third / 3
    return (square - wait**2) * (1 + 2 * k) + k**2 * (square * second + fourth / 4 + wait * third)


def unevenness(a: float, moments: Moments) -> float:
    """How much more than of exponential service waits in M/G/1 vary, beside their mean; never less than 1."""
    each, plain = (spread_of_one(a, given) / given[0] ** 2 for given in (moments, EXPONENTIAL))
    return max(1.0, each / plain)


def spread_of_waits(servers: int, a: float) -> float:
    """The same in M/M/c, about."""
    places = servers + ceil(log(NOTHING) / log(a / servers))
    if places > MOST_PLACES:
        return inf
    waiting = [max(0, count - servers) for count in range(places + 1)]
    return long_run_variance(*rates(servers, places, a), waiting) / a


def spread_of_sharing(a: float) -> float:
    """The same of times with processor sharing, where service is exponential."""
    places = ceil(log(NOTHING) / log(a))
    if places > MOST_PLACES:
        return inf
    return long_run_variance(*rates(1, places, a), range(places + 1)) / a


def spread_of_refusals(servers: int, places: int, a: float) -> float:
    """The same of whether there was no place in M/M/c/K: by how long it is full, and by who comes meanwhile."""
    if places > MOST_PLACES:
        return inf
    is_full = [0] * places + [1]
    return a * long_run_variance(*rates(servers, places, a), is_full) + turned_away(servers, places, a)


def spread_by_class(loads: Sequence[float], place: int) -> float:
    """About the same of waits, or times, of one class in means of their own: exponential for those who have to wait.

    They hang together as the waits of M/M/1 do, of which only those of this class and of the ones before it count.
    """
    upto = sum(loads[: place + 1])
    alike = (2 + 5 * upto - 4 * upto**2 + upto**3) / ((2 - upto) * (1 - upto) ** 2)
    return (2 / sum(loads) - 1) * max(1.0, alike * loads[place] / upto)


def spread_closed(users: int, think: float) -> float:
    """The same of times at one server of users who think in between.

    The sum of n times is the area under the number at the server until n have left, and when that is varies too.
    """
    if not think:  # all are always there: each service is in the time of everybody
        return users**2
    births, deaths = [(users - count) / think for count in range(users)], [1.0] * users
    price = sojourn_closed(users, think)
    rate = 1 - chances(births, deaths)[0]
    return long_run_variance(births, deaths, range(users + 1), price) / rate
