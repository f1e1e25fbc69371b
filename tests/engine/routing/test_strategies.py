"""Every strategy keeps the router's promise; then each its own."""

from collections import Counter
from math import inf
from random import Random

import numpy as np
import pytest

from engine.cache import BlockChain
from engine.chance import draws
from engine.errors import BadSettings, UnknownName
from engine.routing import Seat, Tools, strategy
from engine.routing.strategies import SCANNED, LoadHeap, alias_table, make_strategy

BLEND = "0.6 cache_aware + 0.3 least_loaded + 0.1 latency_based"
NAMES = [*strategy.names(), BLEND, "0.5 cost + 0.5 quota_aware"]


def fleet(count, model="llama"):
    return [Seat(f"r{number}", model) for number in range(count)]


def tools(seed=1, **options):
    return Tools(draws(seed, "test"), **options)


def made(name, **options):
    return make_strategy(name, tools(), options)


@pytest.fixture(params=NAMES)
def chooser(request):
    return made(request.param)


def busy(seats, random):
    for seat in seats:
        seat.tokens_in_flight = random.randrange(3)
        seat.requests_in_flight = random.randrange(3)


@pytest.mark.parametrize("count", [*range(1, 20), 50])
def test_the_choice_is_always_one_of_the_candidates(chooser, ask, chain, count):
    seats, random = fleet(count), Random(count)  # noqa: S311  seeded
    for number in range(3 * count):
        busy(seats, random)
        session, keys = random.choice([None, "s", "t"]), chain("p", random.randrange(4))
        assert chooser.pick(ask(number, session=session, keys=keys), seats, number) in seats


def test_state_survives_lists_that_shrink_and_grow(chooser, ask, chain):
    seats, random = fleet(50), Random(7)  # noqa: S311  seeded
    told = getattr(chooser, "chosen", lambda *_: None)
    for now_ns in range(1000):
        kept = random.sample(range(50), random.randint(1, 50))
        candidates = [seats[index] for index in sorted(kept)]
        request = ask(now_ns, keys=chain(str(now_ns % 5), 3))
        chosen = chooser.pick(request, candidates, now_ns)
        assert chosen in candidates
        told(request, chosen)
        chosen.tokens_in_flight = random.randrange(100)


def test_a_strategy_counts_no_load_itself(chooser, ask):
    seats = fleet(5)
    for number in range(20):
        chooser.pick(ask(number), seats, 0)
    assert all(seat.tokens_in_flight == seat.requests_in_flight == seat.num_routed == 0 for seat in seats)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_choices(name, ask):
    chosen = []
    for _ in range(2):
        chooser, seats = made(name), fleet(7)
        chosen.append([chooser.pick(ask(number), seats, number).name for number in range(200)])
    assert chosen[0] == chosen[1]


def test_names_and_blends_that_make_no_sense_are_refused():
    for name, message in (
        ("fastest", "no strategy is called 'fastest'"),
        ("0.5 fastest + 0.5 cost", "no strategy is called 'fastest'"),
        ("0.5 cost + cost", "one name, or a sum like"),
        ("-1 cost + 1 least_loaded", "made of weights above 0"),
        ("nan cost + 1 least_loaded", "made of weights above 0"),
        ("0 cost + 1 least_loaded", "made of weights above 0"),
        ("0.5 random + 0.5 cost", "made of strategies that give costs: cache_aware, cost, "),
    ):
        with pytest.raises((UnknownName, BadSettings)) as caught:
            made(name)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("least_loaded", {"ties": "first"}, "strategy.ties is 'first', but must be in_turn or random"),
        ("latency_based", {"exploration": -1}, "strategy.exploration is -1"),
        ("latency_based", {"half_life_s": 0}, "strategy.half_life_s is 0"),
        ("cache_aware", {"prefill_weight": -1}, "strategy.prefill_weight is -1"),
        ("cache_aware", {"prefill_weight": "abc"}, "prefill_weight 'abc', but it must be a number"),
        ("random", {"seed": 3}, "does not take these options"),
        (BLEND, {"ties": "random"}, "given options by its parts' names, not ties"),
        (BLEND, {"least_loaded": 3}, "strategy.least_loaded is 3"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(BadSettings) as caught:
        made(name, **options)
    assert message in str(caught.value)


def test_the_parts_of_a_blend_take_their_options():
    blend = made("0.5 cache_aware + 0.5 least_loaded", cache_aware={"prefill_weight": 3.0})
    assert blend.terms[0][2]._weight == 3.0 * 16


# each its own


def test_round_robin_takes_each_in_turn(ask):
    chooser, seats = made("round_robin"), fleet(3)
    assert [chooser.pick(ask(), seats, 0).name for _ in range(7)] == ["r0", "r1", "r2"] * 2 + ["r0"]


@pytest.mark.parametrize("count", [2, 5, SCANNED, SCANNED + 1, 200])
def test_least_loaded_is_exact_and_fair_among_equals(ask, count):
    chooser, seats, random = made("least_loaded"), fleet(count), Random(3)  # noqa: S311  seeded
    held, last = [], dict.fromkeys(range(count), -1)
    for number in range(6 * count):
        least = min(seat.tokens_in_flight for seat in seats)
        chosen = chooser.pick(ask(number), seats, 0)
        assert chosen.tokens_in_flight == least
        equals = [place for place, seat in enumerate(seats) if seat.tokens_in_flight == least]
        assert last[seats.index(chosen)] == min(last[place] for place in equals)
        last[seats.index(chosen)] = number
        chosen.tokens_in_flight += 1 + number % 3
        held.append((chosen, 1 + number % 3))
        if random.random() < 0.6:
            seat, tokens = held.pop(random.randrange(len(held)))
            seat.tokens_in_flight -= tokens
            chooser.eased(seat)


def test_the_heap_stays_small_however_often_loads_change():
    heap, seats = LoadHeap(tools()), fleet(40)
    for number in range(20_000):
        seat = heap.least(seats)
        seat.tokens_in_flight += 5
        eased = seats[number * 7 % 40]
        eased.tokens_in_flight = max(0, eased.tokens_in_flight - 5)
        heap.eased(eased)
    assert len(heap._heap) <= 4 * 40 + 1


def test_ties_at_random_are_even(ask):
    chooser, seats = made("least_loaded", ties="random"), fleet(4)
    counts = Counter(chooser.pick(ask(), seats, 0).name for _ in range(4000))
    assert all(900 < count < 1100 for count in counts.values())


def test_random_is_even_and_weighted_random_follows_the_weights(ask):
    seats = fleet(4)
    counts = Counter(made("random").pick(ask(), seats, 0).name for _ in range(3))
    chooser = made("random")
    counts = Counter(chooser.pick(ask(), seats, 0).name for _ in range(8000))
    assert all(1800 < count < 2200 for count in counts.values())
    for seat, weight in zip(seats, (5, 3, 2, 0), strict=True):
        seat.weight = weight
    chooser = made("weighted_random")
    counts = Counter(chooser.pick(ask(), seats, 0).name for _ in range(10_000))
    assert counts["r3"] == 0
    for name, share in (("r0", 0.5), ("r1", 0.3), ("r2", 0.2)):
        assert counts[name] / 10_000 == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("weights", [[1], [1, 1], [5, 3, 2], [0, 1, 0, 7], [1e-9, 1], [0.1] * 13, [0, 0]])
def test_an_alias_table_has_exactly_the_weights(weights):
    keep, alias = alias_table(weights)
    shares = [0.0] * len(weights)
    for place, stay in enumerate(keep):
        shares[place] += stay / len(weights)
        shares[alias[place]] += (1 - stay) / len(weights)
    total = sum(weights) or len(weights)
    expected = [weight / total if sum(weights) else 1 / len(weights) for weight in weights]
    assert shares == pytest.approx(expected)


def test_power_of_two_takes_the_less_loaded_of_two_different_ones(ask):
    chooser, seats = made("power_of_two"), fleet(5)
    seats[2].tokens_in_flight = 100
    counts = Counter(chooser.pick(ask(), seats, 0).name for _ in range(5000))
    assert counts["r2"] == 0  # it would have to be drawn twice
    seats[2].tokens_in_flight, seats[3].tokens_in_flight = 0, 50
    assert made("power_of_two").pick(ask(), seats[2:4], 0) is seats[2]
    assert made("power_of_two").pick(ask(), seats[:1], 0) is seats[0]


@pytest.mark.parametrize("count", [5, 40])
def test_quota_aware_goes_where_most_headroom_is_left_and_follows_it(ask, count):
    rooms = {"full": 0.1, "half": 0.5, "free": 0.9}
    seats = [Seat(f"{model}{number}", model) for number in range(count) for model in rooms]
    shared = {}
    for seat in seats:
        seat.room = shared.setdefault(seat.model, seat.room)
    chooser = make_strategy("quota_aware", tools(headroom=rooms.__getitem__), {})
    for number in range(200):
        chooser.pick(ask(number), seats, 0)
    among = Counter(chooser.pick(ask(number), seats, 0).model for number in range(100))
    assert among["free"] == 100
    rooms["free"] = 0.0
    later = [chooser.pick(ask(number), seats, 0).model for number in range(500)][400:]
    assert Counter(later)["half"] == 100


def see(seat, latency_ns, now_ns=0):
    seat.latency_ns, seat.num_observed, seat.observed_ns = float(latency_ns), seat.num_observed + 1, now_ns


def test_latency_based_prefers_the_quick_and_tries_the_slow_now_and_then(ask):
    chooser, seats = made("latency_based", exploration=0.05), fleet(3)
    for seat, latency_ns in zip(seats, (100, 300, 900), strict=True):
        see(seat, latency_ns)
    counts = Counter(chooser.pick(ask(number), seats, 0).name for number in range(4000))
    assert counts["r0"] > 3700
    assert 30 < counts["r2"] < 120
    seats[0].requests_in_flight = 5  # 100 x 6 is more than 300
    assert Counter(chooser.pick(ask(), seats, 0).name for _ in range(100)).most_common(1)[0][0] == "r1"


def test_what_was_seen_long_ago_fades_so_that_a_replica_that_was_slow_is_tried_again(ask):
    chooser, seats = made("latency_based", exploration=0.0, half_life_s=1.0), fleet(2)
    see(seats[0], 100)
    see(seats[1], 800)
    assert all(chooser.pick(ask(), seats, number) is seats[0] for number in range(200))
    for second in range(1, 8):
        for _ in range(16):
            chooser.pick(ask(), seats, second * 1_100_000_000)
    assert seats[1].latency_ns < 130


def test_a_replica_that_was_never_seen_is_not_given_a_whole_burst(ask):
    chooser, seats = made("latency_based"), fleet(4)
    for seat in seats[:3]:
        see(seat, 100)
    sent = Counter()
    for number in range(200):
        seat = chooser.pick(ask(number), seats, 0)
        seat.requests_in_flight += 1
        sent[seat.name] += 1
    assert sent["r3"] <= 200 / 4 + 10


def test_affinity_keeps_sessions_where_they_are_when_the_fleet_changes(ask):
    chooser, seats = made("affinity"), fleet(10)
    sessions = [f"user-{number}" for number in range(2000)]
    before = {name: chooser.pick(ask(session=name), seats, 0) for name in sessions}
    fewer = seats[:4] + seats[5:]
    after = {name: chooser.pick(ask(session=name), fewer, 0) for name in sessions}
    assert all(after[name] is before[name] for name in sessions if before[name] is not seats[4])
    again = {name: chooser.pick(ask(session=name), [*fewer, seats[4]], 0) for name in sessions}
    assert again == before
    fresh = made("affinity")  # another life
    assert {name: fresh.pick(ask(session=name), seats, 0) for name in sessions} == before
    shares = Counter(seat.name for seat in before.values())
    assert all(140 < count < 260 for count in shares.values())


def test_affinity_without_a_session_balances_load(ask):
    chooser, seats = made("affinity"), fleet(3)
    seats[0].tokens_in_flight = 9
    assert chooser.pick(ask(), seats, 0) is seats[1]


def remember(chooser, ask, keys, seat):
    chooser.chosen(ask(keys=keys), seat)


def test_cache_aware_goes_to_who_holds_the_prefix(ask, chain):
    chooser, seats = made("cache_aware"), fleet(4)
    keys = chain("p", 32)
    chooser.pick(ask(keys=keys), seats, 0)
    remember(chooser, ask, keys, seats[2])
    for _ in range(5):
        assert chooser.pick(ask(keys=keys, prompt=512), seats, 0) is seats[2]
    longer = [*keys, *chain("q", 8)]
    assert chooser.pick(ask(keys=longer, prompt=640), seats, 0) is seats[2]
    assert chooser.pick(ask(keys=chain("other", 32)), seats, 0) is not None


def test_what_the_only_open_one_serves_is_known_when_others_come(ask, chain):
    chooser, seats = made("cache_aware"), fleet(3)
    request = ask(keys=chain("p", 3))
    alone = seats[:1]
    chooser.chosen(request, chooser.pick(request, alone, 0))
    assert [chooser.pick(ask(number, keys=chain("p", 3)), seats, 0) for number in range(4)] == alone * 4


def test_cache_aware_takes_the_longest_of_several_matches(ask, chain):
    chooser, seats = made("cache_aware"), fleet(4)
    keys = chain("p", 32)
    chooser.pick(ask(keys=keys), seats, 0)
    remember(chooser, ask, keys[:8], seats[0])
    remember(chooser, ask, keys[:24], seats[1])
    assert chooser.pick(ask(keys=keys, prompt=512), seats, 0) is seats[1]


def test_a_full_replica_loses_its_hits_before_the_others_idle(ask, chain):
    # others send every request to the holder, or, beyond a threshold, throw all affinity away
    chooser, seats = made("cache_aware"), fleet(4)
    keys = chain("p", 32)
    chooser.pick(ask(keys=keys), seats, 0)
    remember(chooser, ask, keys, seats[2])
    seats[2].tokens_in_flight = 511
    assert chooser.pick(ask(keys=keys, prompt=512), seats, 0) is seats[2]
    seats[2].tokens_in_flight = 513  # more than the 32 blocks of 16 tokens that it saves
    assert chooser.pick(ask(keys=keys, prompt=512), seats, 0) is not seats[2]


def test_what_the_least_loaded_has_of_the_prefix_counts_too(ask, chain):
    chooser, seats = made("cache_aware"), fleet(2)
    keys = chain("p", 32)
    chooser.pick(ask(keys=keys), seats, 0)
    remember(chooser, ask, keys, seats[0])
    remember(chooser, ask, keys[:30], seats[1])
    seats[0].tokens_in_flight = 40  # two blocks more save 32 tokens
    assert chooser.pick(ask(keys=keys, prompt=512), seats, 0) is seats[1]


def test_a_miss_goes_to_the_least_loaded_not_to_the_emptiest_cache(ask, chain):
    # seen elsewhere: cache misses go to the replica with the smallest tree, even when it is overloaded
    chooser, seats = made("cache_aware"), fleet(3)
    for number in range(20):
        keys = chain(f"p{number}", 4)
        chooser.pick(ask(keys=keys), seats, 0)
        remember(chooser, ask, keys, seats[number % 2])
    seats[2].tokens_in_flight = 5
    assert chooser.pick(ask(keys=chain("new", 4)), seats, 0) is not seats[2]


def test_a_prefix_counts_only_from_its_start(ask):
    # seen elsewhere: a block in the middle matched anywhere. Names are chained, so none of the later ones is the same
    chooser, seats, keys = made("cache_aware"), fleet(3), []
    for first in (1, 2):
        blocks = BlockChain(b"", 16)
        blocks.extend(np.array([first, *range(127)], dtype=np.int32))
        keys.append(blocks.keys)
    chooser.pick(ask(keys=keys[0]), seats, 0)
    remember(chooser, ask, keys[0], seats[2])
    seats[2].tokens_in_flight = 1
    assert chooser.pick(ask(keys=keys[0]), seats, 0) is seats[2]
    assert chooser.pick(ask(keys=keys[1]), seats, 0) is not seats[2]


def test_a_burst_with_one_new_prefix_goes_to_one_place(ask, chain):
    chooser, seats = made("cache_aware"), fleet(4)
    keys, sent = chain("new", 64), Counter()
    for number in range(8):
        request = ask(number, keys=keys, prompt=1024)
        seat = chooser.pick(request, seats, 0)
        chooser.chosen(request, seat)
        seat.tokens_in_flight += 100
        sent[seat.name] += 1
    assert len(sent) == 1


def test_blocks_on_a_slow_tier_are_worth_less(ask, chain):
    worth = {"r0": 0.25, "r1": 1.0, "r2": 0.0}
    price = lambda seat, _request, blocks: blocks * worth[seat.name]  # noqa: E731
    chooser, seats = make_strategy("cache_aware", tools(price=price), {}), fleet(3)
    keys = chain("p", 32)
    chooser.pick(ask(keys=keys), seats, 0)
    for seat in seats:
        remember(chooser, ask, keys, seat)
    assert chooser.pick(ask(keys=keys), seats, 0) is seats[1]
    seats[1].tokens_in_flight = 400  # 512 tokens saved there, 128 at r0
    assert chooser.pick(ask(keys=keys), seats, 0) is seats[0]


def test_replicas_that_share_a_cache_are_told_apart_by_load_only(ask, chain):
    chooser, seats = made("cache_aware"), [Seat(f"r{number}", "llama", "one cache") for number in range(3)]
    keys = chain("p", 8)
    picks = []
    for number in range(6):
        request = ask(number, keys=keys)
        seat = chooser.pick(request, seats, 0)
        chooser.chosen(request, seat)
        picks.append(seat.name)
    assert picks == ["r0", "r1", "r2"] * 2


def test_cost_is_the_expected_time_to_the_last_token(ask, chain):
    chooser, seats = made("cost"), fleet(3)
    for seat, prefill_ns, token_ns in zip(seats, (10, 10, 100), (50, 500, 5), strict=True):
        seat.prefill_ns, seat.token_ns = prefill_ns, token_ns
    costs = chooser.costs(ask(prompt=100, output=10), seats, 0)
    assert costs == [10 * 100 + 500, 10 * 100 + 5000, 100 * 100 + 50]
    assert chooser.pick(ask(prompt=100, output=10), seats, 0) is seats[0]
    seats[0].tokens_in_flight = 10_000
    assert chooser.pick(ask(prompt=1, output=10), seats, 0) is seats[2]
    keys = chain("p", 6)
    remember(chooser, ask, keys, seats[1])
    assert chooser.costs(ask(prompt=100, output=10, keys=keys), seats, 0)[1] == 10 * (100 - 96) + 5000


@pytest.mark.parametrize("name", ["cost", BLEND, "0.9 cost + 0.1 least_loaded"])
@pytest.mark.parametrize("holders", ["each its own", "two share one"])
def test_among_many_the_keeper_of_the_prefix_is_looked_at(ask, chain, name, holders):
    pair = (lambda number: f"pair {number // 2}") if holders == "two share one" else (lambda _: "")
    chooser, seats = made(name), [Seat(f"r{number}", "llama", pair(number)) for number in range(1000)]
    for seat in seats:
        seat.prefill_ns, seat.tokens_in_flight = 10.0, 100
    keys = chain("p", 32)
    remember(chooser, ask, keys[:20], seats[123])
    remember(chooser, ask, keys, seats[654])
    seats[654].tokens_in_flight = 120
    picked = {chooser.pick(ask(prompt=600, keys=keys), seats, 0).name for _ in range(20)}
    assert picked == {"r654" if holders == "each its own" else "r655"}
    seats[654].tokens_in_flight = seats[655].tokens_in_flight = 5000
    assert chooser.pick(ask(prompt=600, keys=keys), seats, 0).name not in ("r654", "r655")
    assert chooser.pick(ask(prompt=600, keys=chain("q", 4)), seats, 0) in seats
    few = [*seats[:500], *seats[660:]]
    picked = {chooser.pick(ask(prompt=600, keys=keys), few, 0).name for _ in range(20)}
    assert picked <= {"r122", "r123"}, "the longest prefix among those that are left"


def test_a_blend_weighs_its_parts_and_one_part_alone_decides_as_itself(ask):
    seats, random = fleet(6), Random(5)  # noqa: S311  seeded
    blend, alone = made("1.0 least_loaded + 0.000001 latency_based"), made("least_loaded")
    for number in range(200):
        for place, load in enumerate(random.sample(range(100), 6)):
            seats[place].tokens_in_flight = load
        assert blend.pick(ask(number), seats, 0) is alone.pick(ask(number), seats, 0)


def test_a_blend_spreads_each_cost_over_zero_to_one(ask):
    blend, seats = made("0.7 least_loaded + 0.3 latency_based"), fleet(3)
    for seat, tokens, latency_ns in zip(seats, (0, 50, 100), (900, 100, 500), strict=True):
        seat.tokens_in_flight = tokens
        see(seat, latency_ns)
    assert blend.costs(ask(), seats, 0) == pytest.approx([0.3, 0.35, 0.7 + 0.15])
    assert blend.pick(ask(), seats, 0) is seats[0]


def test_equal_costs_stay_equal_in_a_blend(ask):
    blend, seats = made(BLEND), fleet(3)
    assert blend.costs(ask(), seats, 0) == [0.0, 0.0, 0.0]
    assert {blend.pick(ask(), seats, 0).name for _ in range(3)} == {"r0", "r1", "r2"}
    assert min(blend.costs(ask(), seats, 0)) > -inf


def test_a_strategy_of_ones_own_is_asked_for_by_name(ask, tmp_path, monkeypatch):
    (tmp_path / "my_strategies.py").write_text(
        "from engine.routing import strategy\n"
        "@strategy('last_one')\n"
        "class LastOne:\n"
        "    def __init__(self, tools, skip=0):\n"
        "        self.skip = skip\n"
        "    def pick(self, request, seats, now_ns):\n"
        "        return seats[-1 - self.skip]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from engine.routing import Router  # noqa: PLC0415
    from engine.settings import RoutingSettings  # noqa: PLC0415

    monkeypatch.setattr(strategy, "classes", dict(strategy.classes))
    router = Router(RoutingSettings(strategy="last_one", options={"skip": 1}, modules=["my_strategies"]))
    for name in "abc":
        router.add(name, "llama")
    assert router.route("llama", ask(), 1, 0).name == "b"
