"""`python -m sim.gate`: whether a change may be merged, by what can be counted, compared and proved.

Four classes, from sure to noisy. A: what must be equal (counts and digests of small runs, memory that stays). B:
instructions an operation, which do not depend on who else uses the machine. C: an operation's time beside that of a
loop, in one run. D: microseconds of this machine beside published ones. A row passes, warns, fails, or is
inconclusive: that nothing could be said is never a pass. `sim.gate.policy` asks the same of two configurations.
"""
