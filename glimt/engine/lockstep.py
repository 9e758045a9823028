"""Wave: replicas that share experts take their steps together, for as long as any has work.

In a step each replica computes experts for all, so all must take part in it, and know how many
rows are exchanged. Before each step they tell each other what they have to do (a round); who has
nothing takes part for the others. A round in which nobody has anything ends the wave, and all rest.
Who then gets work wakes the others:

    resting ──own work, Wake sent──▶ rounds ──all have nothing──▶ resting
            ──────Wake received────▶

All see the same answers, so all agree on when a wave ends, and rounds can be numbered: a Wake for a
round that is over came from a replica that did not yet know that another had woken it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from glimt.engine.plan import Lockstep, StepPlan
from glimt.errors import EngineAsleep, ReplicaLost

Tell = Callable[[Sequence[int]], list[list[int]]]


class Wave:
    """One replica's part. `tell` gives all replicas' numbers when all have called it, and raises
    RuntimeError if one is gone; `wake` sends a round's number to the others.
    """

    def __init__(self, tell: Tell, wake: Callable[[int], None]) -> None:
        self.num_idle_steps = 0
        self._tell = tell
        self._wake = wake
        self._round = 0
        self._is_on = False

    @property
    def is_on(self) -> bool:
        """The others count on this replica: it must not rest."""
        return self._is_on

    def woken(self, round_number: int) -> None:
        """Another replica begins this round."""
        if round_number >= self._round:
            self._is_on = True

    def turn(self, plan: StepPlan | None, *, is_awake: bool) -> StepPlan | None:
        """What to launch for a plan, or without one: None where all rest.

        Raises ReplicaLost, and EngineAsleep if a replica sleeps: then `plan` cannot be carried out.
        """
        if plan is None and not self._is_on:
            return None
        if not self._is_on:
            self._wake(self._round)
            self._is_on = True
        counts, decodes, awake = zip(*self._round_of(plan, is_awake), strict=True)
        if not any(counts):
            self._is_on = False
            return plan
        if not all(awake):
            raise EngineAsleep("A replica that has a part of the experts sleeps.")
        if plan is None:
            self.num_idle_steps += 1
            plan = StepPlan(step=0, is_idle=True)
        return replace(plan, lockstep=Lockstep(max(counts), all(decodes)))

    def _round_of(self, plan: StepPlan | None, is_awake: bool) -> list[list[int]]:
        num_tokens = 0 if plan is None else plan.num_tokens
        numbers = (num_tokens, int(plan is None or _decodes(plan)), int(is_awake))
        try:
            told = self._tell(numbers)
        except RuntimeError as error:
            raise ReplicaLost("another replica that has a part of the experts is gone") from error
        self._round += 1
        return told


def _decodes(plan: StepPlan) -> bool:
    """Each of its rows computes one token and draws the next."""
    return all(work.num_tokens == 1 and work.samples for work in plan.work)
