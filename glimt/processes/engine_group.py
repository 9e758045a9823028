"""The engines of one supervisor: begun together and, if they share experts, ended together; with
those of other machines when the muster says so.
"""

from collections.abc import Callable

from glimt.experts.group import ExpertGroup
from glimt.processes.children import Child
from glimt.processes.control import EngineStart
from glimt.processes.group_messages import GroupBegins, GroupEnds, GroupQuiet
from glimt.processes.starting import Plan, Starter


class EngineGroup:
    """Of the supervisor's `children`; `adopt` makes one of them."""

    def __init__(
        self,
        plan: Plan,
        starter: Starter,
        children: dict[str, Child],
        adopt: Callable[[Child], None],
    ) -> None:
        self.has_begun = not plan.copies  # engines were started, if there are to be any
        self.ends_by_order = False  # nobody here is to blame
        self._plan = plan
        self._starter = starter
        self._children = children
        self._adopt = adopt
        self._number = 0  # what the muster has had this machine begin last

    @property
    def running(self) -> list[Child]:
        """The engine processes."""
        return [each for each in self._children.values() if isinstance(each.start, EngineStart)]

    def start(self, group: ExpertGroup | None = None) -> None:
        """Start all of them; `group`: with those of other machines."""
        self.has_begun, self.ends_by_order = True, False
        self._starter.begin_group(group)
        for index in self._plan.copies:
            self._adopt(self._starter.engine(index))

    def kill(self) -> list[Child]:
        """End those that still run, since they cannot compute without the others."""
        engines = self.running
        for engine in engines:
            engine.kill()
        return engines

    def obey(self, order: GroupBegins | GroupEnds) -> None:
        """Do what the muster says."""
        if isinstance(order, GroupBegins):
            self._number = order.group.number
            self.start(order.group)
        else:
            self._end()

    def muster_lost(self) -> None:
        """And with it the other machines. Its successor counts anew."""
        self._number = 0
        self._end()

    def _end(self) -> None:
        self.ends_by_order = True
        self.kill()
        self.report_quiet()

    def report_quiet(self) -> None:
        """Tell the muster, once it is there, that no engine runs here."""
        muster = self._children.get("muster")
        if muster is not None and muster.ready and not self.running:
            muster.line.send(GroupQuiet(self._number))

    def restart(self) -> None:
        """After the end of all: start them, or wait for the other machines."""
        if self._plan.muster is None:
            self.start()
        else:
            self.report_quiet()
