"""How soon blocks are wanted again: learned from what was seen, forgotten slowly."""

NUM_AGES = 33
HALVE_AT = 20_000.0


class Reuse:
    """Ages at which blocks were read again or left, in octaves of ticks, and the hazard that follows from them.

    hazard(a) = reads at that age / those that reached it, over the width of the octave: the chance of being read
    again within the next tick for a block that was not read for `a` ticks (the estimator of a life table). One for
    all models: learned for each alone, it was noise that cost up to a point of hit ratio on conversations.
    """

    __slots__ = ("_hazards", "_left", "_read")

    def __init__(self) -> None:
        self._read = [0.0] * NUM_AGES
        self._left = [0.0] * NUM_AGES
        self._hazards: list[float] = []

    def read(self, age: int) -> None:
        """A block was read again, so many ticks after its last read."""
        self._read[min((age + 1).bit_length() - 1, NUM_AGES - 1)] += 1.0

    def left(self, age: int) -> None:
        """A block was evicted, so many ticks after its last read."""
        self._left[min((age + 1).bit_length() - 1, NUM_AGES - 1)] += 1.0

    def returned(self, left_age: int, age: int) -> None:
        """A block that had left at `left_age` was wanted again: it would have been read at `age`."""
        octave = min((left_age + 1).bit_length() - 1, NUM_AGES - 1)
        self._left[octave] = max(0.0, self._left[octave] - 1.0)
        self._read[min((age + 1).bit_length() - 1, NUM_AGES - 1)] += 1.0

    def hazard(self, age: int) -> float:
        """The chance of a read within the next tick, for a block of that age; falls with age."""
        if not self._hazards:
            self.learn()
        octave = min((age + 1).bit_length() - 1, NUM_AGES - 2)
        part = min(1.0, (age + 1) / (1 << octave) - 1.0)
        low, high = self._hazards[octave], self._hazards[octave + 1]
        return low + part * (high - low)

    def learn(self) -> None:
        """Answer from now on by all that was seen by now. What is old counts half as much again and again."""
        if sum(self._read) + sum(self._left) > HALVE_AT:
            self._read = [value / 2 for value in self._read]
            self._left = [value / 2 for value in self._left]
        hazards = [0.0] * NUM_AGES
        reached, later = 0.0, 0.0
        for octave in range(NUM_AGES - 1, -1, -1):
            reads = self._read[octave]
            reached += reads + self._left[octave]
            chance = reads / reached if reached else 0.5
            later = hazards[octave] = max(chance / (1 << octave), 1.01 * later)
        self._hazards = hazards  # falling: not read for longer is never worth more
