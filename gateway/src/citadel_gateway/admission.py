"""Station 4: when a request may start.

Each model has a lane: a bounded queue and as much capacity as its usable replicas have. A model that restarts
has no capacity, so its requests wait here, and start when the first replica is back. The lanes share one budget of
work in flight; a part of it is reserved for each model, so that a flood on one leaves the others room.

In a lane the higher priority goes first, but who waits rises; within a priority the principals take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from citadel_gateway.config import PRIORITIES
from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from citadel_gateway.config import Admission as AdmissionSettings
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Fleet, Model

_FOUNDED = 5  # samples before an estimate may refuse anybody


class Permit:
    """The right to be in flight; returned exactly once."""

    __slots__ = ("_open", "admission", "cost", "lane", "started")

    def __init__(self, admission: Admission, lane: Lane, cost: float) -> None:
        self.admission = admission
        self.lane = lane
        self.cost = cost
        self.started = time.monotonic()
        self._open = True

    def release(self) -> None:
        if self._open:
            self._open = False
            self.admission.returned(self)


class Ticket:
    __slots__ = ("displaced", "future", "permit", "principal", "priority", "since")

    def __init__(self, principal: str, priority: int, future: asyncio.Future[None]) -> None:
        self.principal = principal
        self.priority = priority
        self.future = future
        self.displaced = False
        self.since = time.monotonic()
        self.permit: Permit | None = None

    def granted(self) -> Permit:
        if self.permit is None:
            raise RuntimeError("a ticket was called without a permit")
        return self.permit


class Lane:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.in_flight = 0
        self.cost = 0.0
        self.waiting = 0
        self.reserved = 0.0
        self._queues: list[OrderedDict[str, deque[Ticket]]] = [OrderedDict() for _ in PRIORITIES]

    def add(self, ticket: Ticket, *, first: bool) -> None:
        queue = self._queues[ticket.priority]
        line = queue.setdefault(ticket.principal, deque())
        if first:
            line.appendleft(ticket)
            queue.move_to_end(ticket.principal, last=False)
        else:
            line.append(ticket)
        self.waiting += 1

    def remove(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.priority]
        line = queue.get(ticket.principal)
        if line is not None and ticket in line:
            line.remove(ticket)
            self.waiting -= 1
            if not line:
                del queue[ticket.principal]

    def least(self, principal: str, priority: int) -> Ticket | None:
        """Who makes room in a full queue: the last of the greediest principal of the lowest priority.

        Below the newcomer's priority always; of the same one, where that principal has more waiting than its share
        leaves it beside the newcomer. Nobody makes room for one of a lower priority.
        """
        for height, queue in enumerate(self._queues):
            if height > priority:
                return None
            if not queue:
                continue
            line = max(queue.values(), key=len)
            if height == priority:
                own = queue.get(principal)
                if len(line) <= (0 if own is None else len(own)) + 1:
                    return None
            return line[-1]
        return None

    def next(self, ageing: float) -> Ticket | None:
        """Whose turn it is; the principal goes to the end of its priority's round."""
        now = time.monotonic()
        best: Ticket | None = None
        height = -1.0
        for queue in self._queues:
            if queue:
                head = next(iter(queue.values()))[0]
                risen = head.priority + (now - head.since) / ageing
                if risen > height:
                    best, height = head, risen
        if best is not None:
            queue = self._queues[best.priority]
            line = queue[best.principal]
            line.popleft()
            self.waiting -= 1
            if line:
                queue.move_to_end(best.principal)
            else:
                del queue[best.principal]
        return best

    def expected_wait(self, ahead: int) -> float:
        """Seconds until a request with so many before it would start, from how long requests take here."""
        capacity = self.model.capacity()
        if not capacity:
            return self.model.back_in()
        if self.in_flight < capacity and not ahead:
            return 0.0
        return (ahead + 1) * self.model.service.value / capacity


class Admission:
    def __init__(self, settings: AdmissionSettings, fleet: Fleet) -> None:
        self.fleet = fleet
        self.lanes: dict[Model, Lane] = {}
        self.waiting = 0
        self.apply(settings)

    def apply(self, settings: AdmissionSettings) -> None:
        self.settings = settings
        models = list(self.fleet.models.values())
        shares = sum(model.settings.share for model in models)
        budget = settings.budget or 0.0
        for model in models:
            lane = self.lanes.setdefault(model, Lane(model))
            lane.reserved = budget * settings.reserved * model.settings.share / shares
        self.lanes = {
            model: lane for model, lane in self.lanes.items() if model in models or lane.in_flight or lane.waiting
        }
        # of the part of the budget that is nobody's own
        self.common_used = sum(max(0.0, lane.cost - lane.reserved) for lane in self.lanes.values())

    @property
    def in_flight(self) -> int:
        return sum(lane.in_flight for lane in self.lanes.values())

    async def enter(self, exchange: Exchange, model: Model, *, again: bool = False) -> Permit:
        """A permit now or after waiting; `again` for a request that lost its replica before the first byte."""
        lane = self.lanes[model]
        if not lane.waiting and self._fits(lane):
            return self._grant(lane)
        _refuse_absent(model)
        if not again:
            self._refuse_hopeless(exchange, lane)
        return await self._wait(exchange, lane, again)

    async def _wait(self, exchange: Exchange, lane: Lane, again: bool) -> Permit:
        ticket = Ticket(exchange.principal.id, exchange.priority, asyncio.get_running_loop().create_future())
        if not again and lane.waiting >= lane.model.settings.queue:
            self._displace(exchange, lane)
        lane.add(ticket, first=again)
        self.waiting += 1
        if not lane.model.capacity():
            for replica in lane.model.replicas:
                replica.poke.set()
        patience = exchange.deadline - time.monotonic()
        if lane.model.settings.hold is not None and not lane.model.capacity():
            patience = min(patience, lane.model.settings.hold)
        self.dispatch()
        try:
            async with asyncio.timeout(patience):
                await ticket.future
            if ticket.displaced:
                raise _full(lane)
        except TimeoutError:
            if ticket.permit is not None:
                return ticket.permit
            if not lane.model.capacity():
                raise _not_ready(lane.model) from None
            wait = lane.expected_wait(lane.waiting)
            raise Refusal(
                503,
                "queue_timeout",
                f"{lane.model.name} was busy until the deadline of this request; {lane.waiting} others wait.",
                retry_after=wait or 1.0,
            ) from None
        except asyncio.CancelledError:
            if ticket.permit is not None:
                ticket.permit.release()
            raise
        finally:
            self.waiting -= 1
            if ticket.permit is None:
                lane.remove(ticket)
        return ticket.granted()

    def _refuse_hopeless(self, exchange: Exchange, lane: Lane) -> None:
        """What cannot succeed is refused now, not after it has waited."""
        model = lane.model
        wait = lane.expected_wait(lane.waiting)
        if lane.waiting >= model.settings.queue and lane.least(exchange.principal.id, exchange.priority) is None:
            raise _full(lane)
        deadline = exchange.client_deadline
        if deadline is None or not model.capacity() or model.service.count < _FOUNDED:
            return
        needed = wait + (model.first_byte.value if exchange.stream else model.service.value)
        left = deadline - time.monotonic()
        if needed > left:
            raise Refusal(
                503,
                "deadline_unreachable",
                f"{model.name} would answer in about {needed:.1f} s with {lane.waiting} requests waiting, and "
                f"the client gives up after {left:.1f} s.",
                retry_after=max(wait, 0.1),
            )

    def _displace(self, exchange: Exchange, lane: Lane) -> None:
        ticket = lane.least(exchange.principal.id, exchange.priority)
        if ticket is None:
            raise _full(lane)
        ticket.displaced = True
        lane.remove(ticket)
        if not ticket.future.done():
            ticket.future.set_result(None)

    def load(self, model: Model) -> float:
        """How busy a model is: 1 is as much as it can have in flight."""
        lane = self.lanes[model]
        return (lane.in_flight + lane.waiting) / max(1, model.capacity())

    def dispatch(self) -> None:
        """Let in whoever fits: lanes that have least of their share in flight first."""
        if not self.waiting:
            return
        progress = True
        while progress:
            progress = False
            lanes = [lane for lane in self.lanes.values() if lane.waiting]
            for lane in sorted(lanes, key=lambda lane: lane.cost / lane.model.settings.share):
                if self._fits(lane):
                    ticket = lane.next(self.settings.ageing)
                    if ticket is not None and not ticket.future.done():
                        ticket.permit = self._grant(lane)
                        ticket.future.set_result(None)
                    progress = True
                    break

    def returned(self, permit: Permit) -> None:
        lane = permit.lane
        lane.in_flight -= 1
        before = max(0.0, lane.cost - lane.reserved)
        lane.cost -= permit.cost
        self.common_used -= before - max(0.0, lane.cost - lane.reserved)
        if not lane.in_flight:
            lane.cost = 0.0
        if self.waiting:
            self.dispatch()

    def _fits(self, lane: Lane) -> bool:
        if lane.in_flight >= lane.model.capacity():
            return False
        budget = self.settings.budget
        if budget is None or not lane.in_flight:
            return True  # an idle model may always start one, however small its part
        cost = lane.model.settings.cost
        over = max(0.0, lane.cost + cost - lane.reserved) - max(0.0, lane.cost - lane.reserved)
        return over <= 0.0 or self.common_used + over <= budget * (1.0 - self.settings.reserved) + 1e-9

    def _grant(self, lane: Lane) -> Permit:
        cost = lane.model.settings.cost
        before = max(0.0, lane.cost - lane.reserved)
        lane.in_flight += 1
        lane.cost += cost
        self.common_used += max(0.0, lane.cost - lane.reserved) - before
        return Permit(self, lane, cost)


def _full(lane: Lane) -> Refusal:
    return Refusal(
        503,
        "queue_full",
        f"{lane.model.name} has {lane.in_flight} requests in flight and {lane.waiting} waiting, "
        "which is as many as it may have.",
        retry_after=max(lane.expected_wait(lane.waiting), 0.1),
    )


def _refuse_absent(model: Model) -> None:
    """Waiting is for a model that comes back by itself, not for one that has failed or fails whatever it is asked."""
    if model.capacity():
        return
    if not model.comes_back():
        raise _not_ready(model)
    if all(replica.state in ("ready", "unknown", "failed") for replica in model.replicas):
        back = model.back_in()
        raise Refusal(
            503,
            "circuit_open",
            f"{model.name} has failed too many requests and is left alone for another {back:.1f} s.",
            retry_after=back,
        )


def _not_ready(model: Model) -> Refusal:
    reasons = "; ".join(f"{replica.name} is {replica.state}: {replica.reason}" for replica in model.replicas)
    return Refusal(503, "model_not_ready", f"{model.name} is not ready: {reasons}.", retry_after=model.back_in())
