"""The fleet: the models that are in memory, their replicas, and what each of them can take.

It does what the lifecycle decides: makes executors and replicas, warms them, gives them to the router and to the
health monitor, watches them, and takes them away again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cache import BlockNames
from engine.clock import NS_PER_S, Clock, to_ns
from engine.errors import BadSettings, LoadFailed
from engine.execution import (
    LEAP_STEPS,
    Executor,
    Grammars,
    Machine,
    Replica,
    Scheduler,
    Spelling,
    executors,
)
from engine.figures import Figure, Values
from engine.formats import open_checkpoint
from engine.registry import Health, HealthMonitor, Lifecycle, Registry
from engine.routing import Router
from engine.settings import EngineSettings, ExecutorSettings, LoadingSettings, ModelSettings, require

if TYPE_CHECKING:
    from engine.text import Text

COSTED_TOKENS = 2_048
"""The prompt whose prefill says what computing a block of a model costs."""

OF_SERVICE_TIMES = ("ps", "preemptive")
"""Disciplines that only servers without tokens have."""

LoadTimes = Callable[[str, int], int]
"""What the n-th load (from 0) of a model takes where it is modelled: key, n -> nanoseconds."""

StateObserver = Callable[[str, Health, str], None]
"""Told of a model's new state, and what made it."""


def median_load_times(settings: LoadingSettings) -> LoadTimes:
    """Every load takes the median of its kind: the first of a model is cold, the others are warm."""
    return lambda _key, number: to_ns(settings.warm_s if number else settings.cold_median_s)


@dataclass(slots=True)
class Home:
    """A model in memory: what one request to it may be, whose KV is whose, and how its tokens are text.

    `weights_id` changes with the weights, so that KV of other weights is never taken for theirs.
    """

    model: ModelSettings
    replicas: list[Replica]
    request_tokens: int  # that one request may have at most, prompt and output
    vocab: int
    block_bytes: int
    value_bytes: float
    weights_id: str
    text: "Text | None"
    executor: Executor  # of the first replica: what it says of costs holds for all
    grammars: Grammars | None = None  # None: it cannot be held to one
    names: BlockNames = field(default_factory=BlockNames)
    spaces: dict[str, Any] = field(
        default_factory=dict
    )  # where the KV of each tenant goes, as it was looked up
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.model.key


class Fleet:
    """Implements `Host` for the lifecycle. Not for others to call: they hold a model through `lifecycle`."""

    def __init__(
        self,
        settings: EngineSettings,
        clock: Clock,
        registry: Registry,
        router: Router,
        health: HealthMonitor,
        load_times: LoadTimes,
        on_state: StateObserver,
        groups_of: Callable[[str], Iterable[str]],
    ) -> None:
        """Raises BadSettings or UnknownName before anything is loaded."""
        self.settings = settings
        self.lifecycle = Lifecycle(settings.models, clock, self)
        self.replicas: dict[str, Replica] = {}
        self.homes: dict[str, Home] = {}
        self._clock = clock
        self._registry = registry
        self._router = router
        self._health = health
        self._load_times = load_times
        self._on_state = on_state
        self._groups_of = groups_of
        self._probe_every_ns = to_ns(settings.health.probe_every_s)
        self._probe_timeout_ns = to_ns(settings.health.probe_timeout_s)
        self._options: dict[str, Any] = {}
        self._num_loads: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}
        self._ranks: dict[str, int] = {}
        for name, model in settings.fleet.replicas.items():
            self._names.setdefault(registry.find(model).key, []).append(name)
        self.executor_of(settings.executor.name)
        is_of_law = settings.fleet.discipline in OF_SERVICE_TIMES
        allowed = "fifo or priority: only service times of executor=law can be shared or interrupted"
        fits = not is_of_law or settings.executor.name == "law"
        require("fleet.discipline", settings.fleet.discipline, fits, allowed)

    def load_now(self, key: str) -> None:
        """Have a model in memory before time begins. Raises LoadFailed, BadSettings."""
        self.lifecycle.add_loaded(key)
        machine = self._machine(key)
        made = self._make_executors(key, machine)
        self._move_in(key, machine, made, self._make_text(machine.model))
        for replica in self.homes[key].replicas:
            self._open(replica)
        self._registry.set_state(key, Health.HEALTHY)

    def start(self) -> None:
        """Let the replicas serve and their health be watched."""
        for replica in self.replicas.values():
            replica.start()
            self._look_after(replica)

    @property
    def num_loads(self) -> int:
        """How often a model was loaded after time began."""
        return sum(self._num_loads.values())

    def figures(self) -> Iterator[Figure]:
        """Who is in memory and how well, what each replica has in hand, and what weights take."""
        running: Values = {}
        waiting: Values = {}
        busy: Values = {}
        health: Values = {}
        for name, replica in self.replicas.items():
            names = (replica.model, name)
            running[names], waiting[names] = float(replica.num_running), float(replica.num_waiting)
            busy[names] = replica.busy_ns / NS_PER_S
            if self._health.knows(name):
                health[(*names, self._health.health(name))] = 1.0
        whose = ("model_name", "replica")
        yield Figure("vllm:num_requests_running", "Requests in the batch.", whose, running, is_gauge=True)
        yield Figure(
            "vllm:num_requests_waiting", "Requests in a replica's line.", whose, waiting, is_gauge=True
        )
        yield Figure("modelyard:replica_busy_seconds", "Time spent in steps.", whose, busy)
        yield Figure(
            "modelyard:replica_health", "1 for the present state.", (*whose, "state"), health, is_gauge=True
        )
        states: Values = {(model.key, model.state): 1.0 for model in self._registry.all()}
        yield Figure(
            "modelyard:model_state",
            "1 for the present state.",
            ("model_name", "state"),
            states,
            is_gauge=True,
        )
        weights: Values = {(): float(self.lifecycle.used_bytes)}
        yield Figure("modelyard:weights_bytes", "What weights take in memory.", (), weights, is_gauge=True)
        budget = self.lifecycle.budget_bytes
        if budget is not None:
            most: Values = {(): float(budget)}
            yield Figure("modelyard:weights_budget_bytes", "What they may take.", (), most, is_gauge=True)

    def names_of(self, key: str) -> list[str]:
        """The names of a model's replicas. One that the settings do not name has one replica, called like itself."""
        return self._names.get(key, [key])

    def vocab_of(self, key: str) -> int | None:
        """The size of a model's vocabulary, in memory or not; None when only loading tells."""
        model = self._model(key)
        return self.executor_of(self._executor_name(model)).vocab_of(model)

    def executor_of(self, name: str) -> type[Executor]:
        """The class of an executor, its options checked. Raises BadSettings, UnknownName."""
        cls = executors.find(name)
        if name not in self._options:
            self._options[name] = executor_options(name, self.settings.executor)
        return cls

    # what the lifecycle asks for

    def weights_bytes(self, key: str) -> int:
        model = self._model(key)
        name = self._executor_name(model)
        cls = self.executor_of(name)
        return cls.weights_bytes(model, self._options[name])

    async def load(self, key: str) -> None:
        machine = self._machine(key)
        number = self._num_loads.get(key, 0)
        self._num_loads[key] = number + 1
        try:
            if self.executor_of(self._executor_name(machine.model)).is_modelled:
                await self._clock.sleep(self._load_times(key, number))
                made, text = self._make_all(key, machine)
            else:
                (made, text), _ = await self._clock.compute(lambda: self._make_all(key, machine))
        except LoadFailed:
            raise
        except (BadSettings, OSError, MemoryError, RuntimeError) as error:
            raise LoadFailed(f"{key} could not be loaded: {error}") from error
        self._move_in(key, machine, made, text)
        try:
            await self._warm(key)
        except BaseException:
            self.unload(key)
            raise
        for replica in self.homes[key].replicas:
            self._open(replica)
            self._look_after(replica)
        for executor in made:
            if executor.keep is not None:
                self._clock.spawn(self._keep(executor.keep))

    def unload(self, key: str) -> None:
        home = self.homes.pop(key)
        for replica in home.replicas:
            if self._health.knows(replica.name):
                self._router.remove(replica.name)
                self._health.remove(replica.name)
            del self.replicas[replica.name]
            replica.stop()

    def moved(self, key: str, state: Health, cause: str) -> None:
        self._on_state(key, state, cause)

    def _make_all(self, key: str, machine: Machine) -> tuple[list[Executor], "Text | None"]:
        return self._make_executors(key, machine), self._make_text(machine.model)

    def _make_executors(self, key: str, machine: Machine) -> list[Executor]:
        name = self._executor_name(machine.model)
        cls, options = self.executor_of(name), self._options[name]
        return [cls(replace(machine, replica=each), options) for each in self.names_of(key)]  # type: ignore[call-arg]

    def _rank(self, name: str) -> int:
        """Another number for each replica, in the order in which they first came into memory."""
        return self._ranks.setdefault(name, len(self._ranks))

    def _make_text(self, model: ModelSettings) -> "Text | None":
        executor = self.executor_of(self._executor_name(model))
        if executor.is_modelled:
            vocab = executor.vocab_of(model)
            if not self.settings.fleet.letters or vocab is None:
                return None
            from engine.text import letters  # noqa: PLC0415  it brings Jinja and tokenizers

            return letters(vocab)
        if model.path is None:
            return None
        from engine.text import text_of  # noqa: PLC0415

        return text_of(open_checkpoint(Path(model.path)))

    def _machine(self, key: str) -> Machine:
        settings = self.settings
        return Machine(
            self._model(key),
            settings.hardware,
            self._clock,
            settings.fleet.max_batch,
            settings.seed,
            keeps_on_device=settings.cache.enabled and settings.cache.gpu is not None,
        )

    def _model(self, key: str) -> ModelSettings:
        card = self._registry.find(key)
        if card.settings is None:
            raise LoadFailed(f"{key} cannot be loaded: {card.reason}")
        return card.settings

    def _executor_name(self, model: ModelSettings) -> str:
        """The executor of a model: what our own decoder does not run goes to that of the library."""
        chosen = self.settings.executor.name
        return "transformers" if chosen == "torch" and model.architecture is None else chosen

    def _move_in(self, key: str, machine: Machine, made: list[Executor], text: "Text | None") -> None:
        """Replicas around the executors, known here and not yet to the router."""
        settings, first = self.settings, made[0]
        block_tokens = settings.cache.block_tokens
        keeps = settings.cache.enabled and first.keeps_blocks
        replicas = []
        for name, executor in zip(self.names_of(key), made, strict=True):
            fleet = settings.fleet
            scheduler = Scheduler(
                fleet.max_batch,
                fleet.step_tokens,
                executor.kv_capacity_tokens,
                by_priority=fleet.discipline in ("priority", "preemptive"),
                queue_capacity=fleet.queue_capacity,
            )
            # without a cache no block is worth copying out: no sequence fills one that is so long
            length = block_tokens if keeps else executor.context_tokens + 1
            replica = Replica(
                name,
                key,
                executor,
                scheduler,
                self._clock,
                length,
                rank=self._rank(name),
                leap_steps=LEAP_STEPS if fleet.fast_forward else 1,
                discipline=fleet.discipline,
            )
            replicas.append(replica)
        self.replicas |= {replica.name: replica for replica in replicas}
        self.homes[key] = Home(
            model=machine.model,
            replicas=replicas,
            request_tokens=min(first.context_tokens, first.kv_capacity_tokens),
            vocab=first.vocab,
            block_bytes=first.kv_bytes_per_token * block_tokens if keeps else 0,
            value_bytes=first.kv_value_bytes,
            weights_id=first.weights_id,
            text=text,
            executor=first,
            grammars=grammars_of(first, text),
        )

    async def _warm(self, key: str) -> None:
        """One token from each replica before the first request: what is made lazily is made now."""
        timeout_s = self.settings.models.warm_timeout_s
        for replica in self.homes[key].replicas:
            replica.start()
            if not await replica.probe(to_ns(timeout_s)):
                raise LoadFailed(f"{key} was loaded, but did not give its first token within {timeout_s:g} s")

    def _open(self, replica: Replica) -> None:
        """Let requests come to a replica that is warm, or that waits for time to begin."""
        key = replica.model
        executor = self.homes[key].executor
        tokens = min(COSTED_TOKENS, executor.context_tokens)
        prefill_ns = executor.prefill_ns(0, tokens) / tokens
        # replicas of one model share the cache of the process: what one has computed, each of them finds
        self._router.add(replica.name, key, self._groups_of(key), holder=key, prefill_ns=prefill_ns)
        self._health.add(replica.name)

    def _look_after(self, replica: Replica) -> None:
        if self.settings.health.enabled and self.settings.health.probes:
            self._look_later(replica)

    def _look_later(self, replica: Replica) -> None:
        """See how a replica does in a while, and by then, whether it has finished steps since now."""
        self._clock.call_later(self._probe_every_ns, partial(self._look, replica, replica.num_steps))

    def _look(self, replica: Replica, steps_before: int) -> None:
        """Probe a replica, unless it is well and the steps that it has finished say so."""
        if self.replicas.get(replica.name) is not replica:
            return
        is_well = replica.is_alive and self._health.health(replica.name) is Health.HEALTHY
        if is_well and replica.num_steps > steps_before:
            self._health.probed(replica.name, True, self._clock.now_ns())
            self._look_later(replica)
        else:
            self._clock.launch(self._probe(replica))

    async def _probe(self, replica: Replica) -> None:
        """Ask a replica for a token, and look again later."""
        answered = await replica.probe(self._probe_timeout_ns)
        if self.replicas.get(replica.name) is replica:
            self._health.probed(replica.name, answered, self._clock.now_ns())
            self._look_later(replica)

    async def _keep(self, keep: Callable[[], object]) -> None:
        """Write beside what loading has converted; the model serves meanwhile."""
        await self._clock.compute(keep)


def grammars_of(executor: Executor, text: "Text | None") -> Grammars | None:
    """Grammars in a model's own tokens. None where nobody would follow them, and where no token ends an answer."""
    if text is None or not executor.follows_grammars or not text.tokenizer.eos_ids:
        return None
    tokenizer = text.tokenizer
    return Grammars(
        lambda: Spelling(
            [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)],
            sorted(tokenizer.control),
            tokenizer.eos_ids,
            partial(tokenizer.encode, special=False),
        )
    )


def executor_options(name: str, settings: ExecutorSettings) -> object:
    """The options of an executor. Raises BadSettings for one that the chosen executor does not have.

    One that was not chosen, but steps in for it, takes those of the options that it has too.
    """
    cls = executors.find(name).Options
    allowed = [each.name for each in fields(cls)]
    unknown = [option for option in settings.options if option not in allowed]
    if unknown and name == settings.name:
        raise BadSettings(
            f"executor.{unknown[0]} is {settings.options[unknown[0]]!r}, but executor {name!r} has no such "
            f"option; its options are {', '.join(allowed)}"
        )
    return cls(**{option: value for option, value in settings.options.items() if option in allowed})
