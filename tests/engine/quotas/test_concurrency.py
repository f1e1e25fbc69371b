"""The quota: never too many at once, first come first served, every slot given back once."""

from random import Random

import numpy as np
import pytest
import simpy

from engine.clock import NS_PER_S, to_ns
from engine.errors import DeadlinePassed, OverQuota
from engine.quotas import Quotas
from engine.request import Request
from engine.settings import QuotaSettings

PROMPT = np.zeros(1, dtype=np.int32)


def make(clock, limit=1, queue=256, **options):
    return Quotas(QuotaSettings(max_concurrent_requests=limit, queue_capacity=queue, **options), clock)


def reserve(quota, now_ns=0):
    return quota.reserve(Request(0, "llama", PROMPT, 1, 0), "llama", 2, now_ns)


class Crowd:
    """Requests that come, hold their slot for a time and go; what became of each."""

    def __init__(self, clock, quota):
        self.clock = clock
        self.quota = quota
        self.admitted = []
        self.ended = {}
        self.inside = {}
        self.most_inside = 0

    def come(self, number, hold_s=1.0, at_s=0.0, deadline_s=None, model="llama"):
        return self.clock.spawn(self._live(number, hold_s, at_s, deadline_s, model))

    async def _live(self, number, hold_s, at_s, deadline_s, model):
        try:
            await self.clock.sleep(to_ns(at_s))
            await self._visit(number, hold_s, None if deadline_s is None else to_ns(deadline_s), model)
            self.ended[number] = "served"
        except (OverQuota, DeadlinePassed) as error:
            self.ended[number] = error.reason
        except simpy.Interrupt:
            self.ended[number] = "left"

    async def _visit(self, number, hold_s, deadline_ns, model):
        request = Request(number, model, PROMPT, 1, self.clock.now_ns(), deadline_ns=deadline_ns)
        with await self.quota.admit(request, model):
            self.admitted.append(number)
            self.inside[model] = self.inside.get(model, 0) + 1
            self.most_inside = max(self.most_inside, self.inside[model])
            try:
                await self.clock.sleep(to_ns(hold_s))
            finally:
                self.inside[model] -= 1

    def run(self, until_s=None):
        self.clock.env.run(until=None if until_s is None else to_ns(until_s))


@pytest.fixture
def crowd(clock):
    return Crowd(clock, make(clock))


def is_empty(quota):
    quota.check_integrity()
    return quota.in_service == 0 and quota.num_waiting == 0


@pytest.mark.parametrize("seed", range(25))
def test_under_any_interleaving_there_are_never_too_many_in_service(clock, seed):
    random = Random(seed)  # noqa: S311  seeded
    limit, queue = random.randint(1, 5), random.randint(0, 20)
    crowd = Crowd(clock, make(clock, limit, queue))
    tasks = []
    for number in range(300):
        at_s = random.randrange(200) / 10
        deadline_s = at_s + random.randrange(30) / 10 if random.random() < 0.3 else None
        tasks.append(crowd.come(number, random.randrange(8) / 10, at_s, deadline_s))

    async def interrupt():
        while True:
            await clock.sleep(to_ns(random.randrange(1, 4) / 10))
            task = random.choice(tasks)
            if task.is_alive:
                task.interrupt()
            assert crowd.quota.in_service <= limit
            assert crowd.quota.num_waiting <= queue

    clock.spawn(interrupt())
    crowd.run(60)
    assert crowd.most_inside == limit
    assert len(crowd.ended) == 300
    assert is_empty(crowd.quota)


def test_who_waits_is_served_in_the_order_of_arrival(crowd):
    for number in range(50):
        crowd.come(number, at_s=number / 1000)
    crowd.run()
    assert crowd.admitted == list(range(50))


def test_a_thousand_at_once_for_one_slot_are_admitted_one_by_one(clock):
    crowd = Crowd(clock, make(clock, limit=1, queue=1000))
    for number in range(1001):
        crowd.come(number, 0.001)
    crowd.run(0.0005)
    assert crowd.admitted == [0]
    crowd.run()
    assert crowd.admitted == list(range(1001))
    assert crowd.most_inside == 1


def test_beyond_the_queue_a_request_is_refused(clock):
    crowd = Crowd(clock, make(clock, limit=2, queue=3))
    for number in range(10):
        crowd.come(number)
    crowd.run()
    served = [number for number, end in crowd.ended.items() if end == "served"]
    assert sorted(served) == [0, 1, 2, 3, 4]
    assert list(crowd.ended.values()).count("over_quota") == 5


def test_a_newcomer_never_overtakes_who_waits(crowd):
    crowd.come("holder", 1.0)
    crowd.come("waiter", 1.0, at_s=0.5)
    crowd.come("newcomer", 1.0, at_s=1.0)  # at the very moment at which the slot comes free
    crowd.run()
    assert crowd.admitted == ["holder", "waiter", "newcomer"]


def test_a_slot_granted_to_one_that_leaves_in_the_same_instant_goes_to_the_next(crowd):
    grant = reserve(crowd.quota)
    leaver, _ = crowd.come("leaver"), crowd.come("next")
    crowd.run(1)
    grant.release()
    leaver.interrupt()
    crowd.run(1.5)
    assert crowd.ended == {"leaver": "left"}
    assert crowd.admitted == ["next"]
    crowd.run()
    assert is_empty(crowd.quota)


def test_one_that_leaves_the_queue_is_passed_over(crowd):
    crowd.come("holder", 1.0)
    leaver, _ = crowd.come("leaver"), crowd.come("next")
    crowd.run(0.5)
    leaver.interrupt()
    crowd.run(0.6)
    assert crowd.quota.num_waiting == 1
    crowd.run()
    assert crowd.admitted == ["holder", "next"]
    assert is_empty(crowd.quota)


def test_the_deadline_ends_the_waiting_at_its_time(crowd):
    crowd.come("holder", 10.0)
    crowd.come("hurried", deadline_s=2.0)
    crowd.come("patient", deadline_s=20.0)
    crowd.run(2.1)
    assert crowd.ended == {"hurried": "deadline_passed"}
    assert crowd.quota.num_waiting == 1
    crowd.run()
    assert crowd.ended["patient"] == "served"


def test_a_slot_that_comes_free_at_the_deadline_is_not_lost(crowd):
    crowd.come("holder", 1.0)
    crowd.come("hurried", deadline_s=1.0)
    crowd.come("next")
    crowd.run()
    assert len(crowd.ended) == 3
    assert crowd.ended["next"] == "served"
    assert is_empty(crowd.quota)


def test_those_who_have_left_take_up_no_room(clock):
    quota = make(clock, limit=1, queue=10)
    crowd = Crowd(clock, quota)
    crowd.come("holder", 1000.0)
    for number in range(500):
        crowd.come(number, at_s=number, deadline_s=number + 0.5)
    crowd.run(600)
    assert list(crowd.ended.values()) == ["deadline_passed"] * 500
    assert quota.num_waiting == 0
    assert len(quota._lines["llama"].waiters()) == 0


def test_giving_back_twice_changes_nothing(clock):
    quota = make(clock, limit=2)
    one, two = reserve(quota), reserve(quota)
    assert reserve(quota) is None
    one.release()
    one.release()
    assert quota.in_service == 1
    two.release()
    assert is_empty(quota)


def refusal(quota):
    with pytest.raises(OverQuota) as caught:
        reserve(quota)
    return caught.value


def test_retry_after_is_positive_before_anything_was_served(clock):
    quota = make(clock, limit=1, queue=0)
    reserve(quota)
    assert refusal(quota).retry_after_s == 1.0


@pytest.mark.parametrize(("limit", "queue", "expected_s"), [(1, 0, 2.0), (2, 3, 4.0), (4, 0, 0.5)])
def test_retry_after_is_the_time_until_the_queue_has_moved_up(clock, limit, queue, expected_s):
    crowd = Crowd(clock, make(clock, limit, queue))
    for number in range(limit):
        crowd.come(number, hold_s=2.0)
    crowd.run()
    for number in range(limit + queue):
        crowd.come(100 + number, hold_s=2.0)
    crowd.run(2.5)
    error = refusal(crowd.quota)
    assert error.retry_after_s == pytest.approx(expected_s)
    assert f"try again in {expected_s:.3f} s" in str(error)


def test_a_slot_that_nobody_used_says_nothing_of_how_long_service_takes(clock):
    crowd = Crowd(clock, make(clock, limit=1, queue=1))
    crowd.come("served", hold_s=2.0)
    crowd.run()
    for _ in range(20):
        grant = reserve(crowd.quota, clock.now_ns())
        leaver = crowd.come("leaver")
        crowd.run((clock.now_ns() + 2 * NS_PER_S) / NS_PER_S)
        grant.release()
        leaver.interrupt()
        crowd.run((clock.now_ns() + 1) / NS_PER_S)
    crowd.come("last", hold_s=2.0)
    crowd.come("waiter", hold_s=2.0)
    crowd.run((clock.now_ns() + 1) / NS_PER_S)
    assert refusal(crowd.quota).retry_after_s == pytest.approx(4.0, rel=1e-3)


def test_a_quota_that_is_switched_off_admits_everybody(clock):
    crowd = Crowd(clock, make(clock, limit=1, queue=0, enabled=False))
    for number in range(100):
        crowd.come(number)
    crowd.run()
    assert crowd.most_inside == 100
    assert is_empty(crowd.quota)


def test_models_do_not_take_each_other_s_slots(clock):
    crowd = Crowd(clock, make(clock, limit=1, queue=0))
    for number, model in enumerate(["llama", "llama", "phi", "phi"]):
        crowd.come(number, model=model)
    crowd.run(0.5)
    assert crowd.quota.in_service == 2
    crowd.run()
    assert [crowd.ended[number] for number in range(4)] == ["served", "over_quota"] * 2
    assert crowd.most_inside == 1
