"""How soon blocks of a model are wanted again: learned from what was seen, forgotten slowly."""

NUM_AGES = 33
PRIOR = 20_000.0
HALVE_AT = 200_000.0


class Reuse:
    """Ages at which blocks were read again or left, in octaves of ticks, and the hazard that follows from them.

    hazard(a) = reads at that age / those that reached it, over the width of the octave: the chance of being read
    again within the next tick for a block that was not read for `a` ticks (the estimator of a life table). A model of
    which little is known yet is taken for the average of all (`common`).
    """

    __slots__ = ("_common", "_hazards", "_left", "_read", "chances")

    def __init__(self, common: "Reuse | None" = None) -> None:
        self._common = common
        self._read = [0.0] * NUM_AGES
        self._left = [0.0] * NUM_AGES
        self._hazards: list[float] = []
        self.chances = [
            0.5
        ] * NUM_AGES  # the share of those that reached an octave of age that were read in it

    def read(self, age: int) -> None:
        """A block was read again, so many ticks after its last read."""
        self._read[min((age + 1).bit_length() - 1, NUM_AGES - 1)] += 1.0
        if self._common is not None:
            self._common.read(age)

    def left(self, age: int) -> None:
        """A block was evicted, so many ticks after its last read."""
        self._left[min((age + 1).bit_length() - 1, NUM_AGES - 1)] += 1.0
        if self._common is not None:
            self._common.left(age)

    def returned(self, left_age: int, age: int) -> None:
        """A block that had left at `left_age` was wanted again: it would have been read at `age`."""
        octave = min((left_age + 1).bit_length() - 1, NUM_AGES - 1)
        self._left[octave] = max(0.0, self._left[octave] - 1.0)
        self._read[min((age + 1).bit_length() - 1, NUM_AGES - 1)] += 1.0
        if self._common is not None:
            self._common.returned(left_age, age)

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
        prior = self._common.chances if self._common is not None else None
        hazards, chances = [0.0] * NUM_AGES, self.chances
        reached, later = 0.0, 0.0
        for octave in range(NUM_AGES - 1, -1, -1):
            reads = self._read[octave]
            reached += reads + self._left[octave]
            if prior is not None:
                chances[octave] = (reads + PRIOR * prior[octave]) / (reached + PRIOR)
            elif reached:
                chances[octave] = reads / reached
            later = hazards[octave] = max(chances[octave] / (1 << octave), 1.01 * later)
        self._hazards = hazards  # falling: not read for longer is never worth more
