"""Station 4: who may start, who waits and for how long, and who has to leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from citadel_gateway.admission import Admission, Lane, Permit, Ticket
from citadel_gateway.config import Config
from citadel_gateway.errors import Refusal
from citadel_gateway.exchange import Exchange
from citadel_gateway.fleet import Fleet, Model
from tests.gateway.stations.parts import Clock, config_of, exchange_of, fleet_of, model_of, principal_of

pytestmark = pytest.mark.anyio


def admission_of(models: dict[str, dict[str, Any]], **settings: Any) -> tuple[Admission, Fleet]:
    config = config_of(models, admission=settings)
    fleet = fleet_of(config)
    return Admission(config.admission, fleet), fleet


def single(concurrency: int = 1, **settings: Any) -> tuple[Admission, Model, Lane]:
    admission, fleet = admission_of({"phi": {"concurrency": concurrency, **settings}})
    model = fleet.models["phi"]
    return admission, model, admission.lanes[model]


def ticket(lane: Lane, principal: str, priority: int = 1, *, first: bool = False) -> Ticket:
    """One that waits."""
    made = Ticket(principal, priority, asyncio.get_running_loop().create_future())
    lane.add(made, first=first)
    return made


def asking(name: str, priority: int = 1) -> Exchange:
    exchange = exchange_of(principal=principal_of(name))
    exchange.priority = priority
    return exchange


async def enter(admission: Admission, model: Model, exchange: Exchange | None = None, *, again: bool = False) -> Permit:
    return await admission.enter(exchange or asking("me"), model, again=again)


async def queued(
    admission: Admission, model: Model, exchange: Exchange | None = None, *, again: bool = False
) -> asyncio.Task[Permit]:
    """A request that has gone as far as it can."""
    task = asyncio.create_task(enter(admission, model, exchange, again=again))
    await asyncio.sleep(0)
    return task


async def refused(admission: Admission, model: Model, exchange: Exchange | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await admission.enter(exchange or asking("me"), model)
    return caught.value


class TestPermit:
    async def test_it_is_returned_once(self) -> None:
        """Twice would let one more in than the model can take."""
        admission, model, lane = single(concurrency=5)
        first, _ = await enter(admission, model), await enter(admission, model)
        first.release()
        first.release()
        assert lane.in_flight == admission.in_flight == 1

    async def test_a_ticket_that_was_never_called_has_none(self) -> None:
        _, _, lane = single()
        with pytest.raises(RuntimeError):
            ticket(lane, "a").granted()


class TestLane:
    async def test_what_leaves_the_queue_waits_no_longer(self) -> None:
        _, _, lane = single()
        first, second = ticket(lane, "a"), ticket(lane, "a")
        other = ticket(lane, "b", priority=2)
        assert lane.waiting == 3
        lane.remove(first)
        lane.remove(first)
        assert lane.waiting == 2
        lane.remove(other)
        assert (lane.waiting, lane.next(10.0)) == (1, second)
        lane.remove(second)
        assert (lane.waiting, lane.next(10.0)) == (0, None)

    async def test_principals_take_turns(self) -> None:
        _, _, lane = single()
        a1, a2, b1 = ticket(lane, "a"), ticket(lane, "a"), ticket(lane, "b")
        assert [lane.next(10.0) for _ in range(4)] == [a1, b1, a2, None]
        assert lane.waiting == 0

    async def test_one_that_lost_its_replica_goes_before_all_of_its_priority(self) -> None:
        _, _, lane = single()
        old, own = ticket(lane, "a"), ticket(lane, "b")
        back = ticket(lane, "b", first=True)
        assert [lane.next(10.0) for _ in range(3)] == [back, old, own]

    async def test_the_higher_priority_goes_first_until_the_lower_has_risen(self, clock: Clock) -> None:
        """A priority for every `ageing` seconds: nobody waits for ever; of two at the same height the older goes."""
        for waited, first in ((9.9, "new"), (10.0, "old"), (10.1, "old")):
            _, _, lane = single()
            ticket(lane, "old", priority=0)
            clock.now += waited
            ticket(lane, "new", priority=1)
            chosen = lane.next(10.0)
            assert chosen is not None
            assert (waited, chosen.principal) == (waited, first)

    async def test_the_last_of_the_greediest_makes_room(self) -> None:
        _, _, lane = single()
        assert lane.least("new", 1) is None
        for name in ("a", "b", "b", "b"):
            last = ticket(lane, name)
        assert lane.least("new", 1) is last
        assert lane.least("new", 3) is last
        assert lane.least("new", 0) is None  # nobody makes room for a lower priority
        lowest = ticket(lane, "c", priority=0)
        assert lane.least("new", 1) is lowest
        assert lane.least("new", 0) is None  # it has no more than its share

    async def test_among_equals_only_whoever_has_more_than_a_share_makes_room(self) -> None:
        _, _, lane = single()
        for name in ("a", "a", "b"):
            ticket(lane, name)
        assert lane.least("b", 1) is None  # two and two would be left, the other way round
        assert lane.least("a", 1) is None
        more = ticket(lane, "a")
        assert lane.least("b", 1) is more
        lane.remove(more)
        assert lane.least("new", 1) is not None

    def test_the_expected_wait(self) -> None:
        """Clients are told by Retry-After; those whose deadline is nearer are refused at once."""
        model = model_of({"concurrency": 2, "load_seconds": 33.0})
        lane = Lane(model)
        model.service.add(6.0)
        assert (lane.waiting, lane.in_flight, lane.cost, lane.reserved) == (0, 0, 0.0, 0.0)
        assert lane.expected_wait(0) == 0.0
        assert lane.expected_wait(1) == 6.0  # somebody waits although a place is free: the budget is used up
        lane.in_flight = 1
        assert lane.expected_wait(0) == 0.0
        lane.in_flight = 2
        assert lane.expected_wait(0) == 3.0
        assert lane.expected_wait(3) == 12.0
        model.replicas[0].state = "loading"
        assert lane.expected_wait(0) == 33.0


class TestEnter:
    async def test_as_many_as_the_capacity_and_not_one_more(self) -> None:
        admission, model, lane = single(concurrency=2)
        permits = [await enter(admission, model) for _ in range(2)]
        third = await queued(admission, model)
        assert (lane.in_flight, lane.waiting, admission.waiting, third.done()) == (2, 1, 1, False)
        permits[0].release()
        assert (await third).lane is lane
        assert (lane.in_flight, lane.waiting, admission.waiting) == (2, 0, 0)

    async def test_nobody_overtakes_those_who_wait(self) -> None:
        admission, fleet = admission_of(
            {"phi": {"concurrency": 1, "replicas": [{"name": n, "url": f"http://127.0.0.1:{n}"} for n in ("1", "2")]}}
        )
        model = fleet.models["phi"]
        model.replicas[1].state = "loading"
        await enter(admission, model)
        first = await queued(admission, model, asking("a"))
        model.replicas[1].state = "ready"  # room, which nobody has been told of yet
        second = await queued(admission, model, asking("b"))
        await asyncio.sleep(0)
        assert (first.done(), second.done()) == (True, False)
        second.cancel()

    async def test_a_model_that_is_back_takes_all_that_fit_at_once(self) -> None:
        admission, model, lane = single(concurrency=3)
        model.replicas[0].state = "loading"
        tasks = [await queued(admission, model) for _ in range(4)]
        model.replicas[0].state = "ready"
        admission.dispatch()
        assert (lane.in_flight, lane.waiting) == (3, 1)
        for task in tasks:
            task.cancel()

    async def test_a_client_that_leaves_the_queue_leaves_nothing_behind(self) -> None:
        admission, model, lane = single()
        permit = await enter(admission, model)
        task = await queued(admission, model)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (lane.waiting, admission.waiting, lane.in_flight) == (0, 0, 1)
        permit.release()
        assert lane.in_flight == 0

    async def test_a_client_that_leaves_as_its_turn_comes_gives_it_back(self) -> None:
        admission, model, lane = single()
        permit = await enter(admission, model)
        task = await queued(admission, model)
        permit.release()  # the permit is the task's from here on
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (lane.waiting, admission.waiting, lane.in_flight) == (0, 0, 0)

    async def test_who_has_waited_until_its_deadline_is_told(self) -> None:
        admission, model, lane = single()
        await enter(admission, model)
        exchange = asking("me")
        exchange.deadline = exchange.started
        refusal = await refused(admission, model, exchange)
        assert (refusal.status, refusal.code, refusal.retry_after) == (503, "queue_timeout", 1.0)
        model.service.add(7.0)
        assert (await refused(admission, model, exchange)).retry_after == 14.0  # it still counted itself
        assert (lane.waiting, admission.waiting) == (0, 0)

    async def test_a_restarting_model_is_waited_for_as_long_as_it_holds(self) -> None:
        admission, model, _ = single(hold=0.001)
        model.replicas[0].state = "loading"
        assert not model.replicas[0].poke.is_set()
        async with asyncio.timeout(2.0):
            refusal = await refused(admission, model)
        assert (refusal.status, refusal.code, refusal.retry_after) == (503, "model_not_ready", 120.0)
        assert model.replicas[0].poke.is_set()  # somebody waits: the probe looks at once

    async def test_a_busy_model_is_waited_for_beyond_that(self) -> None:
        admission, model, _ = single(hold=0.001)
        permit = await enter(admission, model)
        task = await queued(admission, model)
        done, _ = await asyncio.wait((task,), timeout=0.02)
        assert not done
        assert not model.replicas[0].poke.is_set()
        permit.release()
        await task

    async def test_the_deadline_bounds_the_hold(self) -> None:
        admission, model, _ = single(hold=100.0)
        model.replicas[0].state = "loading"
        exchange = asking("me")
        exchange.deadline = exchange.started
        async with asyncio.timeout(2.0):
            assert (await refused(admission, model, exchange)).code == "model_not_ready"

    async def test_a_failed_model_is_not_waited_for(self) -> None:
        admission, model, _ = single()
        model.replicas[0].state = "failed"
        assert (await refused(admission, model)).code == "model_not_ready"

    async def test_an_open_breaker_is_not_waited_for_but_a_restart_beside_it_is(self, clock: Clock) -> None:
        admission, fleet = admission_of(
            {"phi": {"replicas": [{"name": n, "url": f"http://127.0.0.1:{n}"} for n in ("1", "2")]}}
        )
        model = fleet.models["phi"]
        for replica in model.replicas:
            replica.breaker.state = "open"
            replica.breaker._opened = clock.now
        refusal = await refused(admission, model)
        assert (refusal.status, refusal.code, refusal.retry_after) == (503, "circuit_open", 60.0)
        model.replicas[1].state = "loading"
        task = await queued(admission, model)
        assert not task.done()
        task.cancel()

    async def test_a_full_queue(self) -> None:
        admission, model, lane = single(queue=2)
        await enter(admission, model)
        tasks = [await queued(admission, model) for _ in range(2)]
        refusal = await refused(admission, model)
        assert (refusal.status, refusal.code, refusal.retry_after) == (503, "queue_full", 0.1)
        model.service.add(2.0)
        assert (await refused(admission, model)).retry_after == 6.0
        # one that has lost its replica has waited before: it comes in all the same
        tasks.append(await queued(admission, model, again=True))
        assert (lane.waiting, admission.waiting) == (3, 3)
        for task in tasks:
            task.cancel()

    async def test_a_full_queue_is_what_the_client_is_told_of_first(self, clock: Clock) -> None:
        admission, model, _ = single(queue=0)
        for _ in range(5):
            model.service.add(6.0)
        await enter(admission, model)
        exchange = asking("me")
        exchange.client_deadline = clock.now + 1.0
        assert (await refused(admission, model, exchange)).code == "queue_full"

    async def test_a_higher_priority_takes_the_place_of_a_lower_one(self) -> None:
        admission, model, lane = single(queue=1)
        permit = await enter(admission, model)
        lower = await queued(admission, model, asking("a"))
        higher = await queued(admission, model, asking("b", priority=2))
        with pytest.raises(Refusal) as caught:
            await lower
        assert caught.value.code == "queue_full"
        assert (lane.waiting, admission.waiting) == (1, 1)
        permit.release()
        (await higher).release()
        assert (lane.waiting, admission.waiting, lane.in_flight) == (0, 0, 0)

    @pytest.mark.parametrize(("stream", "needed"), [(False, 6.0 + 6.0), (True, 6.0 + 1.0)])
    async def test_who_cannot_be_served_in_time_is_refused_before_it_waits(
        self, clock: Clock, stream: bool, needed: float
    ) -> None:
        admission, model, lane = single(queue=5)
        for _ in range(5):
            model.service.add(6.0)
            model.first_byte.add(1.0)
        await enter(admission, model)
        exchange = asking("me")
        exchange.stream = stream
        exchange.client_deadline = clock.now + needed - 0.01
        refusal = await refused(admission, model, exchange)
        assert (refusal.status, refusal.code, refusal.retry_after) == (503, "deadline_unreachable", 6.0)
        exchange.client_deadline = clock.now + needed
        task = await queued(admission, model, exchange)
        assert lane.waiting == 1
        task.cancel()

    async def test_an_estimate_needs_five_answers(self, clock: Clock) -> None:
        admission, model, _ = single()
        for _ in range(4):
            model.service.add(6.0)
        await enter(admission, model)
        exchange = asking("me")
        exchange.client_deadline = clock.now + 1.0
        task = await queued(admission, model, exchange)
        assert not task.done()
        task.cancel()
        await asyncio.wait((task,))
        model.service.add(6.0)
        assert (await refused(admission, model, exchange)).code == "deadline_unreachable"

    async def test_no_estimate_is_made_of_a_restart(self, clock: Clock) -> None:
        admission, model, _ = single()
        for _ in range(9):
            model.service.add(6.0)
        model.replicas[0].state = "loading"
        exchange = asking("me")
        exchange.client_deadline = clock.now + 1.0
        task = await queued(admission, model, exchange)
        assert not task.done()
        task.cancel()

    async def test_load_is_the_part_of_the_capacity_that_is_asked_for(self) -> None:
        admission, model, lane = single(concurrency=4)
        assert admission.load(model) == 0.0
        lane.in_flight, lane.waiting = 2, 4
        assert admission.load(model) == 1.5
        model.replicas[0].state = "loading"
        assert admission.load(model) == 6.0


BUDGET: dict[str, Any] = {"budget": 8.0, "reserved": 0.5}
TWO: dict[str, dict[str, Any]] = {"one": {"concurrency": 100}, "two": {"concurrency": 100}}


class TestBudget:
    """Eight units: two are each model's own, four are for whoever comes."""

    async def take(self, admission: Admission, model: Model, count: int) -> list[Permit]:
        return [await enter(admission, model) for _ in range(count)]

    async def blocked(self, admission: Admission, model: Model) -> bool:
        task = await queued(admission, model)
        waits = not task.done()
        if waits:
            task.cancel()
            await asyncio.wait((task,))
        else:
            (await task).release()
        return waits

    def test_it_is_reserved_by_share(self) -> None:
        admission, fleet = admission_of({"one": {"share": 1.0}, "two": {"share": 3.0}}, **BUDGET)
        assert [admission.lanes[model].reserved for model in fleet.models.values()] == [1.0, 3.0]
        unbounded, fleet = admission_of(TWO)
        assert [unbounded.lanes[model].reserved for model in fleet.models.values()] == [0.0, 0.0]

    async def test_a_flood_leaves_the_others_what_is_theirs(self) -> None:
        admission, fleet = admission_of(TWO, **BUDGET)
        one, two = fleet.models.values()
        await self.take(admission, one, 6)
        assert admission.common_used == 4.0
        assert await self.blocked(admission, one)
        await self.take(admission, two, 2)
        assert admission.common_used == 4.0
        assert await self.blocked(admission, two)
        assert admission.in_flight == 8

    async def test_what_comes_back_is_there_for_all(self) -> None:
        admission, fleet = admission_of(TWO, **BUDGET)
        one, two = fleet.models.values()
        ones, twos = await self.take(admission, one, 6), await self.take(admission, two, 2)
        ones.pop().release()
        assert (admission.common_used, admission.lanes[one].cost) == (3.0, 5.0)
        twos += await self.take(admission, two, 1)
        assert (admission.common_used, admission.lanes[two].cost) == (4.0, 3.0)
        assert await self.blocked(admission, one)
        for permit in ones + twos:
            permit.release()
        assert (admission.common_used, admission.in_flight) == (0.0, 0)
        assert {lane.cost for lane in admission.lanes.values()} == {0.0}

    async def test_no_rest_of_adding_up_is_left(self) -> None:
        """0.1 + 0.2 - 0.1 - 0.2 is not nothing; left in a lane, it would add up over weeks."""
        admission, fleet = admission_of({"one": {"concurrency": 9, "cost": 0.1}}, budget=5.0, reserved=0.1)
        (one,) = fleet.models.values()
        for permit in await self.take(admission, one, 3):
            permit.release()
        assert admission.lanes[one].cost == 0.0

    async def test_an_idle_model_may_always_start_one(self) -> None:
        admission, fleet = admission_of({"one": {"cost": 6.0}, "two": {"cost": 6.0}}, **BUDGET)
        one, two = fleet.models.values()
        await self.take(admission, one, 1)
        await self.take(admission, two, 1)
        assert await self.blocked(admission, two)

    async def test_what_is_a_models_own_is_so_even_when_the_rest_is_overdrawn(self) -> None:
        """After a reload with a smaller budget."""
        admission, fleet = admission_of(TWO, **BUDGET)
        _, two = fleet.models.values()
        await self.take(admission, two, 1)
        admission.common_used = 5.0
        assert not await self.blocked(admission, two)

    async def test_lanes_with_least_of_their_share_go_first(self) -> None:
        admission, fleet = admission_of(
            {"one": {"concurrency": 9, "share": 1.0}, "two": {"concurrency": 9, "share": 4.0}},
            budget=4.0,
            reserved=0.0,
        )
        one, two = fleet.models.values()
        permits = [*await self.take(admission, one, 1), *await self.take(admission, two, 3)]
        waiting = {model.name: await queued(admission, model) for model in (one, two)}
        permits[-1].release()  # 1 of 1 against 2 of 4
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert {name for name, task in waiting.items() if task.done()} == {"two"}
        waiting["one"].cancel()

    async def test_a_reload_counts_anew_and_forgets_only_who_has_nothing_left(self) -> None:
        admission, fleet = admission_of({**TWO, "three": {}, "four": {}}, budget=8.0, reserved=0.0)
        two, three = fleet.models["two"], fleet.models["three"]
        await self.take(admission, two, 3)
        ticket(admission.lanes[three], "a")
        changed: Config = config_of({"one": {"concurrency": 100}}, admission=BUDGET)
        fleet.apply(changed)
        admission.apply(changed.admission)
        assert [model.name for model in admission.lanes] == ["one", "two", "three"]
        assert admission.lanes[fleet.models["one"]].reserved == 4.0
        assert admission.common_used == 3.0
