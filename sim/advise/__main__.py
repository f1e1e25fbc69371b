"""`python -m sim.advise scenario=steady workload=mix_b ttft_s=0.5`: what meets an objective at least cost.

0: found, and it meets the objective surely on seeds that the search did not use. 1: infeasible. 2: bad settings, and
nothing ran. 3: undecided: the budget ended before it was sure. 130: interrupted; `resume=FOLDER` goes on.
"""

import sys

from sim.advise.command import main
from sim.early import begin

if __name__ == "__main__":
    begin()
    sys.exit(main())
