"""The simulation loop: time, order, threads, and what it refuses."""

import asyncio
import contextlib
import contextvars
import gc
from itertools import count
from threading import Thread

import pytest

from sojourn import platform
from sojourn.testing.loop import EPOCH, ONLY_SEED, SEED_COUNT, SimLoop, Stuck, for_seeds, simulate

SEEDS = range(30)


async def _interleaving(tasks: int = 4, steps: int = 3) -> list[str]:
    seen: list[str] = []

    async def worker(name: str) -> None:
        for step in range(steps):
            seen.append(f"{name}{step}")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for i in range(tasks):
            group.create_task(worker("abcdefgh"[i]))
    return seen


class TestTime:
    def test_a_long_sleep_takes_no_real_time(self):
        async def main() -> float:
            before = asyncio.get_running_loop().time()
            await asyncio.sleep(3600)
            return asyncio.get_running_loop().time() - before

        started = platform.monotonic()
        assert simulate(main, seed=1) == 3600
        assert platform.monotonic() - started < 30

    def test_time_stands_still_while_anything_is_ready(self):
        async def main() -> set[float]:
            loop = asyncio.get_running_loop()
            timer = asyncio.create_task(asyncio.sleep(1))
            times = set()
            for _ in range(50):
                times.add(loop.time())
                await asyncio.sleep(0)
            await timer
            return times

        assert simulate(main, seed=1) == {0.0}

    @pytest.mark.parametrize("seed", SEEDS)
    def test_timers_fire_in_the_order_of_time(self, seed):
        async def main() -> list[float]:
            fired: list[float] = []

            async def wait(delay: float) -> None:
                await asyncio.sleep(delay)
                fired.append(delay)

            await asyncio.gather(*(wait(d) for d in (3, 1, 2, 0.5)))
            return fired

        assert simulate(main, seed=seed) == [0.5, 1, 2, 3]

    def test_timers_of_one_moment_fire_in_any_order(self):
        async def main() -> str:
            fired: list[str] = []
            loop = asyncio.get_running_loop()
            for name in "abc":
                loop.call_at(5.0, fired.append, name)
            await asyncio.sleep(6)
            return "".join(fired)

        assert len({simulate(main, seed=s) for s in range(60)}) == 6

    def test_a_cancelled_timer_does_not_move_time(self):
        async def main() -> float:
            loop = asyncio.get_running_loop()
            loop.call_later(50, lambda: None).cancel()
            await asyncio.sleep(100)
            handle = loop.call_later(1, pytest.fail, "cancelled timers do not fire")
            handle.cancel()
            await asyncio.sleep(2)
            return loop.time()

        assert simulate(main, seed=1) == 102


class TestPlatform:
    def test_clocks_follow_the_loop(self):
        async def main() -> tuple[float, float]:
            await asyncio.sleep(90)
            return platform.now(), platform.monotonic()

        assert simulate(main, seed=1) == (EPOCH + 90, 90.0)

    def test_ids_and_randomness_come_from_the_seed(self):
        async def main() -> tuple[str, str, float]:
            return platform.new_id(), platform.new_id(), platform.random()

        first = simulate(main, seed=1)
        assert first == simulate(main, seed=1)
        assert first[0] != first[1]
        assert set(first).isdisjoint(simulate(main, seed=2))
        assert 0 <= first[2] < 1

    def test_the_platform_is_the_process_s_own_again_afterwards(self):
        async def main() -> None:
            raise KeyError

        before = platform.now()
        with pytest.raises(KeyError):
            simulate(main, seed=1)
        assert 0 <= platform.now() - before < 60


class TestOrder:
    def test_the_same_seed_gives_the_same_schedule(self):
        for seed in SEEDS:
            assert simulate(_interleaving, seed=seed) == simulate(_interleaving, seed=seed)

    def test_different_seeds_give_different_schedules(self):
        assert len({tuple(simulate(_interleaving, seed=seed)) for seed in SEEDS}) > len(SEEDS) * 0.8

    def test_every_order_of_two_first_steps_occurs(self):
        async def main() -> str:
            seen: list[str] = []

            async def note(name: str) -> None:
                seen.append(name)

            await asyncio.gather(note("a"), note("b"), note("c"))
            return "".join(seen)

        assert len({simulate(main, seed=s) for s in range(60)}) == 6

    @pytest.mark.parametrize("seed", SEEDS)
    def test_each_task_keeps_its_own_order(self, seed):
        seen = simulate(_interleaving, seed=seed)
        for name in "abcd":
            assert [s for s in seen if s.startswith(name)] == [f"{name}{i}" for i in range(3)]

    @pytest.mark.parametrize("seed", SEEDS)
    def test_callbacks_keep_the_order_in_which_they_were_scheduled(self, seed):
        async def main() -> list[int]:
            seen: list[int] = []
            loop = asyncio.get_running_loop()
            noise = [asyncio.create_task(asyncio.sleep(0)) for _ in range(5)]
            for i in range(10):
                loop.call_soon(seen.append, i)
            await asyncio.gather(*noise)
            await asyncio.sleep(1)
            return seen

        assert simulate(main, seed=seed) == list(range(10))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_callbacks_of_one_future_run_in_order(self, seed):
        async def main() -> str:
            seen: list[str] = []
            future = asyncio.get_running_loop().create_future()
            for name in "abc":
                future.add_done_callback(lambda _, name=name: seen.append(name))
            future.set_result(None)
            await asyncio.sleep(1)
            return "".join(seen)

        assert simulate(main, seed=seed) == "abc"

    def test_a_queue_between_tasks_keeps_its_order(self):
        async def main() -> list[int]:
            queue: asyncio.Queue[int] = asyncio.Queue(2)
            got: list[int] = []

            async def produce() -> None:
                for i in range(20):
                    await queue.put(i)

            async def consume() -> None:
                while len(got) < 20:
                    got.append(await queue.get())

            await asyncio.gather(produce(), consume())
            return got

        for seed in SEEDS:
            assert simulate(main, seed=seed) == list(range(20))

    def test_a_lost_update_is_found(self):
        """What the loop is for: a race that no ordinary run shows is seen under some seed."""

        async def main() -> int:
            value = 0

            async def increment() -> None:
                nonlocal value
                seen = value
                await asyncio.sleep(0)
                value = seen + 1

            first = asyncio.create_task(increment())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.gather(first, increment())
            return value

        assert asyncio.run(main()) == 2
        assert {simulate(main, seed=s) for s in SEEDS} == {1, 2}

    def test_task_names_repeat_with_the_seed(self):
        async def main() -> list[str]:
            tasks = [asyncio.create_task(asyncio.sleep(0)) for _ in range(2)]
            tasks.append(asyncio.create_task(asyncio.sleep(0), name="mine"))
            await asyncio.gather(*tasks)
            return [t.get_name() for t in tasks]

        assert simulate(main, seed=1) == simulate(main, seed=1) == ["sim-2", "sim-3", "mine"]


@pytest.mark.parametrize("seed", SEEDS)
class TestTimeoutsAndCancellation:
    def test_timeout_fires_at_its_time(self, seed):
        async def main() -> float:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await asyncio.sleep(3600)
            return asyncio.get_running_loop().time()

        assert simulate(main, seed=seed) == 5

    def test_timeout_that_is_not_reached(self, seed):
        async def main() -> float:
            async with asyncio.timeout(5):
                await asyncio.sleep(4)
            await asyncio.sleep(10)
            return asyncio.get_running_loop().time()

        assert simulate(main, seed=seed) == 14

    def test_wait_for(self, seed):
        async def main() -> str:
            async def answer() -> str:
                await asyncio.sleep(1)
                return "answer"

            assert await asyncio.wait_for(answer(), 2) == "answer"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 2)
            return "ok"

        assert simulate(main, seed=seed) == "ok"

    def test_a_cancelled_task_cleans_up(self, seed):
        async def main() -> list[str]:
            seen: list[str] = []
            started = asyncio.Event()

            async def work() -> None:
                started.set()
                try:
                    await asyncio.sleep(3600)
                finally:
                    await asyncio.sleep(1)
                    seen.append("cleaned up")

            task = asyncio.create_task(work())
            await started.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()
            return seen

        assert simulate(main, seed=seed) == ["cleaned up"]

    def test_a_task_group_cancels_its_siblings(self, seed):
        async def main() -> float:
            async def fail() -> None:
                await asyncio.sleep(1)
                raise KeyError("boom")

            async def siblings() -> None:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
                    group.create_task(asyncio.sleep(3600))

            with pytest.raises(ExceptionGroup) as caught:
                await siblings()
            assert caught.group_contains(KeyError)
            return asyncio.get_running_loop().time()

        assert simulate(main, seed=seed) == 1

    def test_locks_exclude(self, seed):
        async def main() -> int:
            lock, inside, most = asyncio.Lock(), 0, 0

            async def enter() -> None:
                nonlocal inside, most
                async with lock:
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0)
                    inside -= 1

            await asyncio.gather(*(enter() for _ in range(5)))
            return most

        assert simulate(main, seed=seed) == 1


class TestBlockingWork:
    def test_to_thread_runs_in_the_loop_with_the_caller_s_context(self):
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var")

        async def main() -> str:
            var.set("seen")
            return await asyncio.to_thread(var.get)

        assert simulate(main, seed=1) == "seen"

    def test_an_executor_sees_no_context(self):
        var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="empty")

        async def main() -> str:
            var.set("seen")
            return await asyncio.get_running_loop().run_in_executor(None, var.get)

        assert simulate(main, seed=1) == "empty"

    def test_errors_come_back(self):
        async def main() -> None:
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(lambda: 1 / 0)

        simulate(main, seed=1)

    def test_its_moment_is_the_seed_s(self):
        async def main() -> list[str]:
            seen: list[str] = []

            async def note() -> None:
                seen.append("task")

            await asyncio.gather(asyncio.to_thread(seen.append, "work"), note())
            return seen

        assert {tuple(simulate(main, seed=s)) for s in SEEDS} == {("work", "task"), ("task", "work")}

    def test_cancelled_before_its_moment_it_does_not_run(self):
        async def main() -> list[str]:
            ran: list[str] = []
            asyncio.get_running_loop().run_in_executor(None, ran.append, "ran").cancel()
            await asyncio.sleep(1)
            return ran

        assert simulate(main, seed=1) == []


class TestThreads:
    def test_call_soon_threadsafe_from_the_loop_s_thread_is_call_soon(self):
        async def main() -> list[int]:
            seen: list[int] = []
            asyncio.get_running_loop().call_soon_threadsafe(seen.append, 1)
            await asyncio.sleep(1)
            return seen

        assert simulate(main, seed=1) == [1]

    def test_from_another_thread_it_raises_there_and_ends_the_simulation(self):
        in_thread: list[BaseException] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()

            def call() -> None:
                try:
                    loop.call_soon_threadsafe(print)
                except RuntimeError as error:
                    in_thread.append(error)

            thread = Thread(target=call, name="intruder")
            thread.start()
            thread.join()
            await asyncio.sleep(1)
            pytest.fail("the simulation went on")

        with pytest.raises(RuntimeError, match="thread 'intruder' called into a simulation") as caught:
            simulate(main, seed=1)
        assert in_thread == [caught.value]

    def test_sockets_are_refused(self):
        async def main() -> None:
            await asyncio.open_connection(host="127.0.0.1", port=1)

        with pytest.raises(NotImplementedError):
            simulate(main, seed=1)


class TestStuck:
    def test_a_deadlock_names_the_waiting_tasks_and_where_they_wait(self):
        async def main() -> None:
            async def wait_for_ever() -> None:
                await asyncio.Event().wait()

            asyncio.create_task(wait_for_ever(), name="left-behind")  # noqa: RUF006
            await asyncio.get_running_loop().create_future()

        with pytest.raises(Stuck) as caught:
            simulate(main, seed=1)
        message = str(caught.value)
        assert "nothing is ready and no timer is set" in message
        assert "left-behind: Event.wait (" in message
        assert f"main ({__file__}:" in message

    def test_a_cancelled_timer_is_nothing_to_wait_for(self):
        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.call_later(50, lambda: None).cancel()
            await loop.create_future()

        with pytest.raises(Stuck, match=r"no timer is set at 0\.0 s"):
            simulate(main, seed=1)

    def test_a_deadlock_beside_a_ticker_is_found_at_the_limit(self):
        async def main() -> None:
            async def tick() -> None:
                for _ in count():
                    await asyncio.sleep(60)

            ticker = asyncio.create_task(tick())
            await asyncio.Event().wait()
            await ticker

        with pytest.raises(Stuck, match=r"still not done after 3600 virtual seconds"):
            simulate(main, seed=1, time_limit=3600)

    def test_work_without_end_at_one_moment_is_found(self, monkeypatch):
        monkeypatch.setattr("sojourn.testing.loop.MAX_STEPS_AT_ONE_MOMENT", 1000)

        async def main() -> None:
            for _ in count():
                await asyncio.sleep(0)

        with pytest.raises(Stuck, match="busy"):
            simulate(main, seed=1)

    def test_much_work_over_time_is_not_stuck(self, monkeypatch):
        monkeypatch.setattr("sojourn.testing.loop.MAX_STEPS_AT_ONE_MOMENT", 100)

        async def main() -> None:
            for _ in range(500):
                await asyncio.sleep(1)

        simulate(main, seed=1)

    def test_a_leftover_task_that_refuses_to_end_is_an_error(self):
        async def main() -> None:
            async def stubborn() -> None:
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.get_running_loop().create_future()

            task = asyncio.create_task(stubborn(), name="stubborn")
            await asyncio.sleep(1)
            del task

        with pytest.raises(BaseExceptionGroup) as caught:
            simulate(main, seed=1)
        assert caught.group_contains(Stuck, match="stubborn")
        gc.collect()


class TestTheEnd:
    def test_leftover_tasks_are_cancelled_and_generators_closed(self):
        seen: list[str] = []

        async def numbers():
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(1)
                seen.append("closed")

        async def background() -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        async def main() -> None:
            task = asyncio.create_task(background())
            generator = numbers()
            assert await anext(generator) == 1
            await asyncio.sleep(1)
            task.add_done_callback(lambda _: generator)

        for seed in SEEDS:
            seen.clear()
            simulate(main, seed=seed)
            assert sorted(seen) == ["cancelled", "closed"]

    def test_a_generator_that_only_a_cycle_holds_is_closed_too(self):
        seen: list[str] = []

        async def numbers():
            try:
                yield 1
            finally:
                await asyncio.sleep(1)
                seen.append("closed")

        async def main() -> None:
            generator = numbers()
            await anext(generator)
            cycle: list[object] = [generator]
            cycle.append(cycle)

        simulate(main, seed=1)
        assert seen == ["closed"]

    def test_a_failure_that_nobody_saw_fails_the_simulation(self):
        async def main() -> None:
            async def fail() -> None:
                raise KeyError("unseen")

            asyncio.create_task(fail())  # noqa: RUF006
            await asyncio.sleep(1)

        with pytest.raises(ExceptionGroup) as caught:
            simulate(main, seed=1)
        assert caught.group_contains(KeyError, match="unseen")

    def test_a_failure_that_only_a_cycle_holds_is_seen_too(self):
        async def main() -> None:
            async def fail() -> None:
                raise KeyError("in a cycle")

            cycle: list[object] = [asyncio.create_task(fail())]
            cycle.append(cycle)
            await asyncio.sleep(1)

        with pytest.raises(ExceptionGroup) as caught:
            simulate(main, seed=1)
        assert caught.group_contains(KeyError, match="in a cycle")

    def test_a_callback_that_fails_fails_the_simulation(self):
        async def main() -> None:
            asyncio.get_running_loop().call_soon(lambda: 1 / 0)
            await asyncio.sleep(1)

        with pytest.raises(ExceptionGroup) as caught:
            simulate(main, seed=1)
        assert caught.group_contains(ZeroDivisionError)

    def test_a_closed_loop_takes_nothing_more(self):
        loop = SimLoop(1)
        loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            loop.call_soon(print)
        with pytest.raises(RuntimeError, match="closed"):
            loop.call_later(1, print)

    def test_automatic_collection_is_as_it_was(self):
        async def main() -> bool:
            return gc.isenabled()

        assert simulate(main, seed=1) is False
        assert gc.isenabled()


class TestForSeeds:
    def test_it_runs_each_seed_and_passes_arguments_on(self):
        ids: set[str] = set()

        @for_seeds(5)
        async def case(prefix: str) -> None:
            ids.add(prefix + platform.new_id())

        case("x")
        assert len(ids) == 5
        assert all(i.startswith("x") for i in ids)

    def test_a_failure_tells_its_seed(self):
        failing = next(s for s in range(100) if simulate(_interleaving, seed=s)[0] == "b0")

        @for_seeds(100)
        async def case() -> None:
            assert (await _interleaving())[0] != "b0"

        with pytest.raises(AssertionError) as caught:
            case()
        assert f"simulated with seed {failing}; run it alone with {ONLY_SEED}={failing}" in caught.value.__notes__

    def test_one_seed_or_more_seeds_by_environment(self, monkeypatch):
        runs: list[str] = []

        @for_seeds(2)
        async def case() -> None:
            runs.append(platform.new_id())

        monkeypatch.setenv(SEED_COUNT, "7")
        case()
        assert len(runs) == 7
        monkeypatch.setenv(ONLY_SEED, "3")
        case()
        assert runs[7:] == [runs[3]]

    @pytest.fixture
    def greeting(self):
        return "hello"

    @for_seeds(2)
    async def test_fixtures_reach_a_decorated_test(self, greeting):
        await asyncio.sleep(3600)
        assert greeting == "hello"
