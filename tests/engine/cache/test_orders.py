"""Every eviction order: only who may leave is chosen, nobody is lost, and each policy keeps its own promise."""

from array import array
from collections import OrderedDict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.orders import NOWHERE, Links, orders

MEMORIES = {"s3fifo": ("_gone",), "arc": ("_gone_once", "_gone_again")}


def key(number):
    return number.to_bytes(16, "little")


class Tree:
    """Blocks that hang on others, in one tier: who has children or a reader is busy, as in the cache."""

    def __init__(self, name, **options):
        self.links = Links()
        self.asked = 0
        self.order = orders.make(name, self.links, self.busy, **options)
        self.parent, self.kids, self.keys, self.pins = {}, {}, {}, set()
        self.num_made = 0

    def busy(self, slot):
        self.asked += 1
        return self.kids.get(slot, 0) > 0 or slot in self.pins

    def grow(self, count=1, parent=NOWHERE, density=1.0):
        """A chain of blocks; only its end enters the order, those before it are busy from their first moment."""
        for _ in range(count):
            slot = self.links.take()
            self.num_made += 1
            self.parent[slot], self.kids[slot], self.keys[slot] = parent, 0, key(self.num_made)
            if parent:
                self.kids[parent] += 1
            parent = slot
        self.order.add(slot, self.keys[slot], density)
        return slot

    def remove(self, slot, *, evicted=True):
        parent = self.parent.pop(slot)
        if parent and self.kids[parent] == 1 and parent not in self.pins:
            self.order.inherit(parent, slot)
        if evicted:
            self.order.leave(slot, self.keys.pop(slot))
        else:
            self.order.forget(slot)
            del self.keys[slot]
        del self.kids[slot]
        if parent:
            self.kids[parent] -= 1
        self.links.give_back(slot)

    def evict(self):
        slot = self.order.victim()
        if slot:
            assert self.order.victim() == slot
            assert slot in self.keys
            assert not self.busy(slot)
            self.remove(slot)
        return slot

    def read(self, slot):
        self.order.touch(slot)

    def check(self):
        """Rings are closed, agree in both directions, and hold residents and heads only, each once."""
        before, after = self.links.before, self.links.after
        for slot in range(1, len(after)):
            if after[slot]:
                assert before[after[slot]] == slot
                assert after[before[slot]] == slot
                assert slot not in self.links.free
        assert len(set(self.links.free)) == len(self.links.free)
        for slot in self.keys:
            assert after[slot] or self.busy(slot), "a block that nobody can evict"


@pytest.fixture(params=orders.names())
def name(request):
    return request.param


def random_life(tree, random, steps, most=60):
    for step in range(steps):
        action, slots = random.random(), list(tree.keys)
        if not slots or (action < 0.3 and len(slots) < most):
            parent = random.choice([NOWHERE, *slots])
            tree.grow(random.randrange(1, 5), parent, random.choice([0.0, 0.5, 1.0, 3.0, float("inf")]))
        elif action < 0.6:
            tree.read(random.choice(slots))
        elif action < 0.7:
            tree.pins.add(random.choice(slots))
        elif action < 0.8 and tree.pins:
            slot = random.choice(sorted(tree.pins))
            tree.pins.remove(slot)
            tree.read(slot)
        elif action < 0.85:
            free = [slot for slot in slots if not tree.busy(slot)]
            if free:
                tree.remove(random.choice(free), evicted=random.random() < 0.5)
        elif not tree.evict():
            assert all(map(tree.busy, tree.keys))
        if step % 10 == 0:
            tree.check()


@pytest.mark.parametrize("seed", range(3))
def test_only_residents_that_are_not_busy_are_chosen_and_none_is_lost(name, seed):
    tree, random = Tree(name), Random(seed)  # noqa: S311  seeded
    random_life(tree, random, 1_500)
    for slot in sorted(tree.pins):
        tree.pins.remove(slot)
        tree.read(slot)
    while tree.evict():
        tree.check()
    assert not tree.keys


def test_a_chain_loses_its_tail_before_its_head(name):
    tree = Tree(name)
    head = tree.grow()
    chain = [head]
    for _ in range(20):
        chain.append(tree.grow(parent=chain[-1]))
        tree.read(chain[-1])
    assert [tree.evict() for _ in chain] == chain[::-1]


def test_a_read_of_the_end_keeps_the_whole_chain(name):
    if name == "fifo":
        pytest.skip("reads change nothing in a queue")
    tree = Tree(name)
    old = tree.grow(5)
    others = [tree.grow() for _ in range(20)]
    for _ in range(3):
        tree.read(old)
    gone = [tree.evict() for _ in others]
    assert sorted(gone) == sorted(others)


def test_nobody_leaves_while_all_are_busy_and_asking_stays_cheap(name):
    tree = Tree(name)
    tree.pins |= {tree.grow() for _ in range(500)}
    for slot in sorted(tree.pins):
        tree.read(slot)
    assert tree.order.victim() == NOWHERE
    assert tree.asked <= 500
    for _ in range(100):
        assert tree.order.victim() == NOWHERE
    assert tree.asked <= 500


def test_who_was_put_aside_comes_back_when_his_reader_is_gone(name):
    tree = Tree(name)
    slot = tree.grow()
    tree.pins.add(slot)
    assert tree.order.victim() == NOWHERE
    tree.pins.clear()
    tree.read(slot)
    assert tree.evict() == slot


def test_a_reused_slot_starts_anew(name):
    tree = Tree(name)
    slot = tree.grow()
    for _ in range(50):
        tree.read(slot)
    tree.remove(slot, evicted=False)
    assert tree.grow() == slot
    other = tree.grow()
    tree.read(other)
    tree.read(other)
    assert tree.evict() == slot


def test_a_parent_in_a_reused_slot_starts_anew(name):
    tree = Tree(name)
    first, second = tree.grow(), tree.grow()
    for slot in (first, second):
        for _ in range(50):
            tree.read(slot)
    for slot in (second, first):
        tree.remove(slot, evicted=False)
    chain = tree.grow(2)  # in slots that others had, and its first block is never added
    parent = tree.parent[chain]
    other = tree.grow()
    tree.read(other)
    tree.read(other)
    assert [tree.evict(), tree.evict()] == [chain, parent]


def test_forgetting_one_that_was_never_known_is_harmless(name):
    tree = Tree(name)
    for _ in range(10):
        tree.links.take()
    stranger = tree.links.take()
    tree.order.forget(stranger)
    tree.order.leave(stranger, key(1))
    assert tree.order.victim() == NOWHERE


def test_slots_come_back_whatever_rings_were_needed(name):
    tree, random = Tree(name), Random(1)  # noqa: S311  seeded
    random_life(tree, random, 3_000, most=40)
    assert len(tree.links.after) < 400  # blocks, and rings: one for each count or class in use


@pytest.mark.parametrize("reads", [0, 1])
@pytest.mark.parametrize("name", MEMORIES)
def test_no_more_keys_are_remembered_than_blocks_are_held(name, reads):
    tree = Tree(name)
    for _ in range(2_000):
        slot = tree.grow()
        for _ in range(reads):
            tree.read(slot)
        if len(tree.keys) > 50:
            tree.evict()
    kept = sum(len(getattr(tree.order, memory)) for memory in MEMORIES[name])
    assert 0 < kept <= 51
    if name == "arc":
        assert tree.order._held_once + len(tree.order._gone_once) <= 51


def test_arc_gives_up_what_was_read_once_before_what_was_read_again():
    tree = Tree("arc")
    again = tree.grow()
    tree.read(again)
    once = [tree.grow() for _ in range(5)]
    assert tree.order._held_once == 5
    assert [tree.evict() for _ in range(6)] == [*once, again]


@pytest.mark.parametrize("name", MEMORIES)
def test_of_an_evicted_chain_only_the_end_is_remembered(name):
    tree = Tree(name)
    chain = tree.grow(10)
    end = tree.keys[chain]
    for _ in range(60):
        tree.grow()
    for _ in range(10):
        tree.evict()
    assert len(tree.keys) == 60
    assert [gone for memory in MEMORIES[name] for gone in getattr(tree.order, memory)] == [end]


def test_lfu_gives_up_the_least_used_and_of_those_the_oldest():
    tree = Tree("lfu")
    one, two, three = (tree.grow() for _ in range(3))
    for slot in (one, one, two, three):
        tree.read(slot)
    assert [tree.evict() for _ in range(3)] == [two, three, one]


def test_lfu_halves_counts_after_so_many_uses():
    without, ageing = Tree("lfu"), Tree("lfu", ageing_every=8)
    gone = []
    for tree in (without, ageing):
        star, newcomer = tree.grow(), tree.grow()
        for _ in range(32):
            tree.read(star)
        for _ in range(16):
            tree.read(newcomer)
        gone.append((tree.evict(), star, newcomer))
    assert gone[0][0] == gone[0][2]
    assert gone[1][0] == gone[1][1]  # 32 uses of long ago weigh less than 16 of now


def test_a_parent_has_been_used_whenever_its_child_was():
    tree = Tree("lfu")
    parent = tree.grow()
    child = tree.grow(parent=parent)
    for _ in range(5):
        tree.read(child)
    other = tree.grow()
    for _ in range(4):
        tree.read(other)
    tree.remove(child)
    assert tree.evict() == other
    assert tree.order.worth(parent) == 5


def test_of_equally_often_used_victims_the_oldest_is_worth_least():
    tree = Tree("lfu")
    old, young, loved = (tree.grow() for _ in range(3))
    used = tree.links.used
    used[old], used[young] = 10, 11
    tree.read(loved)
    assert tree.order.worth(old) < tree.order.worth(young) < tree.order.worth(loved)


class NaiveLFU:
    """The same policy in its plainest words: a list for each count."""

    def __init__(self, ageing_every):
        self.count, self.ageing_every, self.reads = OrderedDict(), ageing_every, 0

    def add(self, slot):
        self.count[slot] = 0

    def touch(self, slot):
        self.count[slot] = self.count.pop(slot) + 1
        self.reads += 1
        if self.ageing_every and self.reads % self.ageing_every == 0:
            ordered = sorted(self.count, key=self.count.__getitem__)  # stable: who came first stays in front
            self.count = OrderedDict((slot, self.count[slot] // 2) for slot in ordered)

    def victim(self):
        return min(self.count, key=self.count.__getitem__)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.sampled_from("aarrrt"), st.integers(0, 30)), min_size=20, max_size=150),
    ageing_every=st.sampled_from([0, 3, 7]),
)
def test_lfu_does_what_its_plain_version_does(steps, ageing_every):
    tree, naive, slots = Tree("lfu", ageing_every=ageing_every), NaiveLFU(ageing_every), []
    for step, number in steps:
        if step == "a" or not slots:
            slots.append(tree.grow())
            naive.add(slots[-1])
        elif step == "t":
            assert tree.order.victim() == naive.victim()
            slot = tree.evict()
            slots.remove(slot)
            del naive.count[slot]
        else:
            slot = slots[number % len(slots)]
            tree.read(slot)
            naive.touch(slot)
    tree.check()
    while slots:
        slot = naive.victim()
        assert tree.evict() == slot
        slots.remove(slot)
        del naive.count[slot]


def test_rings_that_became_one_are_whole():
    links = Links()
    ring, other, empty = links.ring(), links.ring(), links.ring()
    slots = [links.take() for _ in range(4)]
    for slot, head in zip(slots, [ring, ring, other, other], strict=True):
        links.insert(slot, head)
    links.join(ring, other)
    links.join(ring, empty)
    assert sorted(links.free) == sorted([other, empty])
    links.insert(last := links.take(), ring)
    slot, walk = links.after[ring], []
    while slot != ring:
        walk.append(slot)
        slot = links.after[slot]
    assert walk == [*slots, last]
    assert links.before[ring] == last


def test_heads_of_rings_that_are_not_needed_any_more_are_given_back():
    tree = Tree("lfu")
    one, other = tree.grow(), tree.grow()
    for _ in range(1_000):
        tree.read(one)
        tree.read(other)
    assert len(tree.links.after) < 10


def test_fifo_puts_one_that_could_not_leave_back_in_front():
    tree = Tree("fifo")
    first, second, _ = (tree.grow() for _ in range(3))
    tree.pins.add(first)
    assert tree.order.victim() == second
    tree.pins.clear()
    tree.read(first)
    assert [tree.evict(), tree.evict()] == [first, second]


def test_a_chain_that_was_read_once_leaves_in_a_row(name):
    tree = Tree(name)
    tree.grow(5)
    other = tree.grow()
    assert other not in [tree.evict() for _ in range(5)]


def test_sieve_moves_its_hand_and_nobody_else():
    tree = Tree("sieve")
    first, second, third = (tree.grow() for _ in range(3))
    tree.read(first)
    assert tree.evict() == second  # the hand forgave the first and went on
    tree.read(third)
    fourth = tree.grow()
    assert tree.evict() == fourth
    assert tree.evict() == first  # its second chance was used up


def test_s3fifo_lets_a_scan_pass_through_the_small_queue():
    tree = Tree("s3fifo")
    loved = [tree.grow() for _ in range(50)]
    for slot in loved * 2:
        tree.read(slot)
    for _ in range(50):
        tree.grow()
    for _ in range(1_000):
        tree.evict()
        tree.grow()
    assert set(loved) <= set(tree.keys)


def test_s3fifo_takes_one_that_comes_again_into_the_main_queue():
    tree = Tree("s3fifo")
    slots = [tree.grow() for _ in range(20)]
    gone = tree.keys[slots[0]]
    assert tree.evict() == slots[0]
    back = tree.links.take()
    tree.parent[back], tree.kids[back], tree.keys[back] = NOWHERE, 0, gone
    tree.order.add(back, gone, 1.0)
    assert [tree.evict() for _ in range(19)] == slots[1:]
    assert tree.evict() == back


def test_arc_gives_the_list_more_room_whose_blocks_come_back():
    tree = Tree("arc")
    often = [tree.grow() for _ in range(10)]
    for slot in often:
        tree.read(slot)
    once = [tree.grow() for _ in range(10)]
    gone = tree.keys[once[0]]
    assert tree.evict() == once[0]
    assert tree.order._target == 0
    tree.order.add(tree.links.take(), gone, 1.0)
    assert tree.order._target >= 1


def test_gdsf_gives_up_what_is_cheap_to_compute_again_before_what_is_dear():
    tree = Tree("gdsf")
    cheap, dear = tree.grow(density=1.0), tree.grow(density=20.0)
    for _ in range(9):
        tree.read(cheap)
    assert tree.evict() == cheap
    assert tree.evict() == dear


def test_gdsf_lets_what_was_dear_go_when_nobody_reads_it_any_more():
    tree = Tree("gdsf")
    dear, evicted = tree.grow(density=20.0), []
    while dear not in evicted and len(evicted) < 100:
        tree.grow(density=1.0)
        evicted.append(tree.evict())
    assert 10 < len(evicted) < 40


def test_gdsf_learns_what_was_lost_from_victims_only():
    tree = Tree("gdsf")
    dear = tree.grow(density=100.0)
    tree.remove(dear)  # with its model, say
    cheap = tree.grow(density=1.0)
    assert tree.order.worth(cheap) == 1
    tree.evict()
    again = tree.grow(density=100.0)
    assert again == cheap
    tree.remove(again)
    assert tree.order.worth(tree.grow(density=1.0)) == 2


def test_gdsf_orders_that_share_their_level_can_be_compared():
    level = array("d", [0.0])
    busy, idle = Tree("gdsf", level=level), Tree("gdsf", level=level)
    for _ in range(50):
        busy.grow(density=4.0)
        busy.evict()
    late, early = idle.grow(density=1.0), busy.grow(density=4.0)
    assert idle.order.worth(late) < busy.order.worth(early)
    assert idle.order.worth(late) > 100


def test_a_long_chain_that_was_read_once_is_not_kept_for_its_length():
    for name in ("lfu", "gdsf"):
        tree = Tree(name)
        tree.grow(200)
        other = tree.grow()
        tree.read(other)
        gone = [tree.evict() for _ in range(200)]
        assert other not in gone


LISTS = st.lists(st.integers(0, 12), max_size=200)


def hits(name, trace, capacity):
    tree, slots, hit = Tree(name), {}, []
    for number in trace:
        slot = slots.get(number)
        hit.append(slot is not None)
        if slot is not None:
            tree.read(slot)
            continue
        if len(slots) == capacity:
            gone = tree.evict()
            slots = {other: at for other, at in slots.items() if at != gone}
        slots[number] = tree.grow()
    return hit


@settings(max_examples=50, deadline=None, derandomize=True)
@given(trace=LISTS, capacity=st.integers(1, 8))
def test_more_room_never_loses_a_hit_of_lru(trace, capacity):
    small, large = hits("lru", trace, capacity), hits("lru", trace, capacity + 1)
    assert all(more or not less for less, more in zip(small, large, strict=True))


def test_more_room_may_lose_hits_of_fifo():
    trace = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    assert (sum(hits("fifo", trace, 3)), sum(hits("fifo", trace, 4))) == (3, 2)
