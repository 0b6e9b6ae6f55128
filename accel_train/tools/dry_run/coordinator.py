"""Which weights DeepSpeed's ZeRO-3 has gathered: its parameter coordinator, once it has seen in what order modules compute.

It gathers what the next modules need while there is room, and keeps what is needed again soon. The order is taken to be that
in which the model lists its modules, and for the backward pass the reverse.
"""

import itertools
from dataclasses import dataclass

from torch import nn

from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.reduction import FLOAT_BYTES, backend_copies

PERSISTENT = 100_000
"""DeepSpeed's `stage3_param_persistence_threshold`: smaller parameters stay whole on every rank."""
PREFETCH = 50_000_000
"""Its `stage3_prefetch_bucket_size`: numbers that are on their way beside those that a module needs."""
WEIGHTS = "gathered weights"


@dataclass(slots=True)
class _Gather:
    """Parameters asked for at once. Several arrive in a flat buffer, which lives until each of them was waited for."""

    waiting: set[nn.Parameter]
    num_bytes: int
    is_flat: bool
    arrived: bool = False


class Coordinator:
    def __init__(self, counted: Counting, modules: list[list[nn.Parameter]], live: int) -> None:
        """`modules`: each one's own parameters. `live`: `stage3_max_live_parameters` and `stage3_max_reuse_distance`."""
        self.counted, self.live = counted, live
        order = [*modules, *reversed(modules)]
        self.before = [0, *itertools.accumulate(sum(one.numel() for one in own) for own in order)]
        """Numbers of all modules before each place of the order."""
        self.large = [[one for one in own if one.numel() > PERSISTENT] for own in order]
        self.queue = [(place, one) for place, own in enumerate(self.large) for one in own]
        self.left_out = set[int]()
        self.whole = set[nn.Parameter]()
        self.on_its_way: dict[nn.Parameter, _Gather] = {}
        self.begin_pass()

    def begin_pass(self) -> None:
        """Before a forward pass. What is on its way is let go; what is whole stays, uncounted."""
        for parameter in list(self.on_its_way):
            self._wait_for(parameter)
            self._let_go(parameter)
        self.next, self.num_live = 0, 0
        self.looked_up: dict[nn.Parameter, int] = {}
        """The last place of the order for which a parameter was prefetched, or found whole."""

    def never(self, place: int) -> None:
        """Leaves a place out of the order: a module without a backward pass."""
        self.left_out.add(place)

    def fetch(self, place: int) -> None:
        """Before a module computes: its own parameters, and then those of the modules after it."""
        own = self.large[place]
        self._gather([one for one in own if one not in self.whole and one not in self.on_its_way])
        for parameter in own:
            self._wait_for(parameter)
        while self.next < len(self.queue) and self.queue[self.next][0] <= place:
            self.next += 1
        self._prefetch(min(self.live - self.num_live, PREFETCH))

    def _prefetch(self, room: int) -> None:
        asked: dict[nn.Parameter, None] = {}
        size = 0
        while self.next < len(self.queue) and size < room:
            place, parameter = self.queue[self.next]
            self.next += 1
            if place in self.left_out:
                continue
            self.looked_up[parameter] = place
            if parameter not in self.whole and parameter not in self.on_its_way and parameter not in asked:
                asked[parameter] = None
                size += parameter.numel()
        self._gather(list(asked))

    def release(self, place: int) -> None:
        """After a module has computed: what is not needed again within `live` numbers, nor was looked up for later."""
        again = len(self.large) - 1 - place
        returns = place < again and again not in self.left_out
        if returns and self.before[again] - self.before[place + 1] < self.live:
            return
        for parameter in self.large[place]:
            if self.looked_up.get(parameter, -1) <= place:
                self._let_go(parameter)

    def drop(self, place: int) -> None:
        for parameter in self.large[place]:
            self._let_go(parameter)

    def drop_all(self) -> None:
        for parameter in [*self.on_its_way, *self.whole]:
            self._wait_for(parameter)
            self._let_go(parameter)

    def _gather(self, parameters: list[nn.Parameter]) -> None:
        if not parameters:
            return
        numbers = sum(parameter.numel() for parameter in parameters)
        self.num_live += numbers
        gather = _Gather(set(parameters), FLOAT_BYTES * numbers, is_flat=len(parameters) > 1)
        self.on_its_way |= dict.fromkeys(parameters, gather)
        copies = backend_copies() * gather.num_bytes
        self.counted.hold(WEIGHTS, gather.num_bytes + copies)
        self.counted.hold(WEIGHTS, -copies)

    def _wait_for(self, parameter: nn.Parameter) -> None:
        gather = self.on_its_way.pop(parameter, None)
        if gather is None:
            return
        if not gather.arrived:
            gather.arrived = True
            self.whole |= gather.waiting
            self.counted.hold(WEIGHTS, gather.num_bytes * gather.is_flat)
        gather.waiting.discard(parameter)
        if not gather.waiting:
            self.counted.hold(WEIGHTS, -gather.num_bytes * gather.is_flat)

    def _let_go(self, parameter: nn.Parameter) -> None:
        if parameter in self.whole:
            self.whole.discard(parameter)
            self.num_live -= parameter.numel()
            self.counted.hold(WEIGHTS, -FLOAT_BYTES * parameter.numel())
