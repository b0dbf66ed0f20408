"""Nudging on a fleet, simulated: orchestrators, replicas of two models, the way between them.

What a fleet will write is asked before there is one: tokens a second over those of the base model's
replicas alone, and which part saturates. All costs are given; the defaults are estimates for two
models on GPUs, and docs/scale.md has what was measured.

A replica computes steps, each one token of every request in its batch; a request waits until the
step that runs is over. An orchestrator is one processor, which each token and each turn takes for a
while. An answer alternates: the aligned model's words, then the base model's tokens; each turn is
one request, and has a position that is computed and not taken.

Knows: times. Does not know: models, the server's code, HTTP.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Servers:
    """Of one model, all alike. Seconds.

    step_s: of a step with one request in it; row_s: more for each further one; read_s: more for
    each token of a prompt that isn't in the cache. request_s: from a request's arrival until it may
    join a step.
    """

    replicas: int = 1
    step_s: float = 0.017
    row_s: float = 0.00005
    read_s: float = 0.00002
    request_s: float = 0.001


@dataclass(frozen=True)
class Fleet:
    """streams: answers at once, each followed by the next. rtt_s: there and back. turn_s, token_s:
    of an orchestrator's processor. plugin: whether servers end turns; else their streams are
    closed, and connections made anew.
    """

    orchestrators: int = 1
    streams: int = 64
    rtt_s: float = 0.0005
    turn_s: float = 0.0005
    token_s: float = 0.0001
    plugin: bool = True
    base: Servers = Servers()
    aligned: Servers = Servers(step_s=0.004, row_s=0.00002, read_s=0.00001)


@dataclass(frozen=True)
class Answers:
    """nudged: share of the aligned model's tokens. words: of a nudge, in tokens, on average.
    block: of the prefix cache, of which a turn reads half a one again."""

    tokens: int = 256
    nudged: float = 0.1
    words: float = 1.5
    prompt: int = 200
    block: int = 16


@dataclass(frozen=True)
class Found:
    """nudging, alone: tokens a second. The shares of time for which orchestrators and replicas were
    busy while nudging, and rows of a base replica's step."""

    nudging: float
    alone: float
    orchestrators: float
    base: float
    aligned: float
    rows: float

    @property
    def ratio(self) -> float:
        return self.nudging / self.alone


Wait = Callable[[Callable[[], None]], None]
"""What an answer waits for: it is told what to do then."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (self.now + seconds, next(self._order), do))

    def run(self, until: float) -> None:
        while self._coming and self._coming[0][0] <= until:
            self.now, _, do = heapq.heappop(self._coming)
            do()
        self.now = until


@dataclass(eq=False)
class Request:
    """told: is called for each token, on the server's side. left: tokens that it may yet write."""

    left: float
    read: int
    told: Callable[[], None]


@dataclass(eq=False)
class Replica:
    clock: Clock
    costs: Servers
    sessions: int = 0
    busy_s: float = 0.0
    steps: int = 0
    rows: int = 0
    _waiting: list[Request] = field(default_factory=list)
    _batch: list[Request] = field(default_factory=list)
    _running: bool = False

    def take(self, request: Request) -> None:
        def join() -> None:
            self._waiting.append(request)
            if not self._running:
                self._step()

        self.clock.after(self.costs.request_s, join)

    def _step(self) -> None:
        self._batch = [each for each in self._batch + self._waiting if each.left]
        self._waiting = []
        self._running = bool(self._batch)
        if not self._batch:
            return
        costs, read = self.costs, sum(each.read for each in self._batch)
        took = costs.step_s + costs.row_s * (len(self._batch) - 1) + costs.read_s * read
        self.busy_s += took
        self.steps += 1
        self.rows += len(self._batch)
        self.clock.after(took, self._written)

    def _written(self) -> None:
        for each in self._batch:
            each.read = 0
            if each.left:
                each.left -= 1
                each.told()
        self._step()


@dataclass(eq=False)
class Orchestrator:
    clock: Clock
    busy_s: float = 0.0
    _free_at: float = 0.0

    def works(self, seconds: float, then: Callable[[], None]) -> None:
        begins = max(self.clock.now, self._free_at)
        self._free_at = begins + seconds
        self.busy_s += seconds
        self.clock.after(self._free_at - self.clock.now, then)


class Simulation:
    """Streams of answers on a fleet. written: tokens so far."""

    def __init__(self, fleet: Fleet, answers: Answers, seed: int = 0) -> None:
        self.clock = Clock()
        self.fleet = fleet
        self.answers = answers
        self.written = 0
        self.base = [Replica(self.clock, fleet.base) for _ in range(fleet.base.replicas)]
        self.aligned = [Replica(self.clock, fleet.aligned) for _ in range(fleet.aligned.replicas)]
        self.orchestrators = [Orchestrator(self.clock) for _ in range(fleet.orchestrators)]
        self._draws = random.Random(seed)

    def run(self, seconds: float, *, nudging: bool) -> float:
        """Tokens a second, once it runs evenly: after as long again."""
        for number in range(self.fleet.streams):
            mine = self.orchestrators[number % len(self.orchestrators)]
            stream = self._nudged(mine) if nudging else self._alone(mine)
            # Answers begin at any time, and not all in one step.
            self.clock.after(self._draws.random() * seconds / 2, _resumed(stream))
        self.clock.run(seconds)
        before = self.written
        for each in (*self.base, *self.aligned, *self.orchestrators):
            each.busy_s = 0.0
        self.clock.run(2 * seconds)
        return (self.written - before) / seconds

    def _alone(self, mine: Orchestrator) -> Iterator[Wait]:
        while True:
            replica = _least(self.base)
            yield self._turn(mine, replica, self.answers.tokens, self.answers.prompt, alone=True)
            replica.sessions -= 1

    def _nudged(self, mine: Orchestrator) -> Iterator[Wait]:
        answers, block = self.answers, self.answers.block // 2
        span = answers.words * (1 - answers.nudged) / answers.nudged
        while True:
            base, aligned = sides = _least(self.base), _least(self.aligned)
            unread = dict.fromkeys(sides, answers.prompt)
            left = answers.tokens
            while left > 0:
                turns = (
                    (aligned, base, 1 + self._drawn(answers.words - 1)),
                    (base, aligned, self._drawn(span)),
                )
                for writer, reader, wanted in turns:
                    kept = min(wanted, left)
                    left -= kept
                    yield self._turn(mine, writer, kept, unread[writer])
                    unread[writer] = block
                    unread[reader] += kept
            for each in sides:
                each.sessions -= 1

    def _turn(
        self, mine: Orchestrator, replica: Replica, kept: int, read: int, *, alone: bool = False
    ) -> Wait:
        """One request. Nudging it has a position more than is kept, at which it stops."""
        clock, fleet, way = self.clock, self.fleet, self.fleet.rtt_s / 2
        wanted = kept + (not alone)
        closed = not fleet.plugin and not alone
        came = 0

        def turn(then: Callable[[], None]) -> None:
            def arrived() -> None:
                nonlocal came
                came += 1
                if came <= wanted:  # else it is behind the stop, and nobody reads it
                    mine.works(fleet.token_s, lambda number=came: told(number))
                if came == wanted and closed:
                    clock.after(way, lambda: setattr(request, "left", 0))

            def told(number: int) -> None:
                self.written += number <= kept
                if number == wanted:
                    then()

            request = Request(
                math.inf if closed else wanted, read, lambda: clock.after(way, arrived)
            )
            sent = way + (fleet.rtt_s if closed else 0)  # a new connection
            mine.works(fleet.turn_s, lambda: clock.after(sent, lambda: replica.take(request)))

        return turn

    def _drawn(self, mean: float) -> int:
        """Geometric, from 0 on."""
        if mean <= 0:
            return 0
        return int(math.log(1 - self._draws.random()) / math.log(mean / (1 + mean)))


def _resumed(stream: Iterator[Wait]) -> Callable[[], None]:
    def resume() -> None:
        next(stream)(resume)

    return resume


def _least(replicas: Sequence[Replica]) -> Replica:
    best = min(replicas, key=lambda each: each.sessions)
    best.sessions += 1
    return best


def simulate(fleet: Fleet, answers: Answers, seconds: float = 30.0, seed: int = 0) -> Found:
    """The fleet nudging, and the same with the base model alone."""
    nudging, alone = (Simulation(fleet, answers, seed) for _ in range(2))
    speed, reference = nudging.run(seconds, nudging=True), alone.run(seconds, nudging=False)

    def busy(parts: Sequence[Orchestrator | Replica]) -> float:
        return sum(each.busy_s for each in parts) / seconds / len(parts)

    steps = sum(each.steps for each in nudging.base)
    return Found(
        speed,
        reference,
        busy(nudging.orchestrators),
        busy(nudging.base),
        busy(nudging.aligned),
        sum(each.rows for each in nudging.base) / steps if steps else 0.0,
    )


def table(found: Sequence[tuple[Fleet, Answers, Found]]) -> str:
    """As Markdown: a row for each fleet."""
    lines = [
        "| orchestrators | base replicas | aligned replicas | streams | nudged | RTT ms | stops "
        "| ratio | tok/s | orchestrators busy | base busy | aligned busy | rows of a base step |",
        "|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for fleet, answers, each in found:
        lines.append(
            f"| {fleet.orchestrators} | {fleet.base.replicas} | {fleet.aligned.replicas} "
            f"| {fleet.streams} | {answers.nudged:.0%} | {fleet.rtt_s * 1e3:g} "
            f"| {'plugin' if fleet.plugin else 'stream'} | **{each.ratio:.2f}** "
            f"| {each.nudging:.0f} | {each.orchestrators:.0%} | {each.base:.0%} "
            f"| {each.aligned:.0%} | {each.rows:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/fleet-sim",
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, fleet, answers = parser.add_argument, Fleet(), Answers()
    add("--orchestrators", nargs="+", type=int, default=[1])
    add("--replicas", nargs="+", type=int, default=[1], help="of the base model")
    add("--aligned", nargs="+", type=int, default=[1], help="replicas of the aligned model")
    add("--streams", nargs="+", type=int, default=[1, 16, 64], help="answers at once")
    add("--nudged", nargs="+", type=float, default=[0.1, 0.3], help="share of the tokens")
    add("--rtt-ms", nargs="+", type=float, default=[0.5], help="to the engines and back")
    add("--stops", nargs="+", choices=["plugin", "stream"], default=["plugin"])
    add("--words", type=float, default=answers.words, help="tokens of a nudge, on average")
    add("--tokens", type=int, default=answers.tokens, help="of an answer")
    for name in ("base", "aligned"):
        mine: Servers = getattr(fleet, name)
        for cost, about in (
            ("step", "with one row"),
            ("row", "more for each further row"),
            ("read", "more for a token that isn't in the cache"),
            ("request", "until a turn may join a step"),
        ):
            default = getattr(mine, f"{cost}_s") * 1e3
            add(f"--{name}-{cost}-ms", type=float, default=default, help=about)
    for cost in ("turn", "token"):
        default = getattr(fleet, f"{cost}_s") * 1e3
        add(f"--{cost}-ms", type=float, default=default, help="of an orchestrator's processor")
    add("--prompt", type=int, default=answers.prompt, help="tokens of it")
    add("--block", type=int, default=answers.block, help="of the engines' prefix cache")
    add("--seconds", type=float, default=20.0, help="simulated")
    args = parser.parse_args()

    def servers(name: str, replicas: int) -> Servers:
        costs = ("step", "row", "read", "request")
        given = {f"{cost}_s": getattr(args, f"{name}_{cost}_ms") / 1e3 for cost in costs}
        return Servers(replicas, **given)

    found = []
    for orchestrators, replicas, aligned, streams, nudged, rtt_ms, stops in itertools.product(
        args.orchestrators,
        args.replicas,
        args.aligned,
        args.streams,
        args.nudged,
        args.rtt_ms,
        args.stops,
    ):
        given = replace(
            fleet,
            orchestrators=orchestrators,
            streams=streams,
            rtt_s=rtt_ms / 1e3,
            turn_s=args.turn_ms / 1e3,
            token_s=args.token_ms / 1e3,
            plugin=stops == "plugin",
            base=servers("base", replicas),
            aligned=servers("aligned", aligned),
        )
        asked = replace(
            answers,
            nudged=nudged,
            words=args.words,
            tokens=args.tokens,
            block=args.block,
            prompt=args.prompt,
        )
        found.append((given, asked, simulate(given, asked, args.seconds)))
    print(table(found))


if __name__ == "__main__":
    main()
