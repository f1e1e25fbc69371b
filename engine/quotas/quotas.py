"""Quotas: reserve, wait, settle, refund. Nobody uses more than is allowed, and nobody pays for what was not used."""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from engine.clock import NS_PER_S, Clock, Timer
from engine.errors import BadRequest, DeadlinePassed, OverQuota
from engine.figures import Figure, Values
from engine.quotas.books import (
    UNBOUNDED,
    Book,
    Ledger,
    Observer,
    Total,
)
from engine.quotas.line import Line, Waiter
from engine.quotas.store import Spent, SpentFile
from engine.quotas.windows import SCALE_BITS, Window
from engine.request import Request
from engine.settings import MODES, AllowanceSettings, ModeSettings, QuotaSettings

SERVICE_SMOOTHING = 0.1  # weight of the newest service time in the running mean behind retry_after
UNKNOWN_RETRY_AFTER_S = 1.0  # before anything was served there is nothing to go by
EACH = "*"
SWEPT_FROM = 1_024  # ledgers, before those that count nothing are looked for

NO_PLACES: list[tuple[int, int]] = []

Key = TypeVar("Key")


class Grant:
    """A place and a reservation, held until the `with` block ends; given back exactly once, however it ends.

    Without `settle` nothing was used, and the request counts as never made.
    """

    __slots__ = (
        "_granted_ns",
        "_is_open",
        "_is_settled",
        "_ledger",
        "_number",
        "_places",
        "_quotas",
        "tokens",
    )

    def __init__(self, quotas: "Quotas", ledger: Ledger, tokens: int, granted_ns: int, number: int) -> None:
        self.tokens = tokens
        self._number = number
        self._quotas = quotas
        self._ledger = ledger
        self._granted_ns = granted_ns
        self._is_open = True
        self._is_settled = False
        self._places = ledger.places(tokens) if ledger.has_bursts else NO_PLACES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def settle(self, used_tokens: int) -> None:
        """So much was used; the rest comes back now, the place when the block ends. Only the first call counts."""
        if self._is_open and not self._is_settled:
            self._is_settled = True
            used = used_tokens if 0 <= used_tokens <= self.tokens else min(max(0, used_tokens), self.tokens)
            self._quotas.refund(
                self._ledger, self.tokens, used, self._granted_ns, self._number, self._places, True
            )

    def release(self) -> None:
        """Give the place back, and the whole reservation if nothing was settled; a second call changes nothing."""
        if not self._is_open:
            return
        self._is_open = False
        if not self._is_settled:
            self._is_settled = True
            self._quotas.refund(
                self._ledger, self.tokens, 0, self._granted_ns, self._number, self._places, False
            )
        self._quotas.free(self._ledger, self.tokens, self._granted_ns, self._number)


class Gauge:
    """A limit that is looked at again and again: what it is called, and where its use stands.

    Without a window it is the places of a book.
    """

    __slots__ = ("book", "kind", "total", "window")

    def __init__(
        self, kind: tuple[str, str, str], book: Book, window: Window | None, total: Total | None
    ) -> None:
        self.kind = kind
        self.book = book
        self.window = window
        self.total = total


class Quotas:
    """What models, tenants, and tenants with models may use. Decisions are synchronous; only a wait takes time.

    Reserved is what a request can use at most, when it is admitted; so requests that run side by side never pass a
    limit together. `epoch_ns`: nanoseconds from 1970 (UTC) to the clock's zero, so that everybody has the same hours.
    `modes_cut`: some mode shortens answers, so whoever serves has to ask.
    """

    def __init__(
        self, settings: QuotaSettings, clock: Clock, observer: Observer | None = None, *, epoch_ns: int = 0
    ) -> None:
        """Raises BadSettings for a state file that cannot be used."""
        self.settings = settings
        self.modes_cut = _cut(settings)
        self._clock = clock
        self._observer = observer
        self._epoch_ns = epoch_ns
        self._models: dict[str, Book] = {}  # by name
        self._tenants: dict[str, Book] = {}
        self._pairs: dict[tuple[str, str], Book] = {}
        self._gauges: list[Gauge] | None = None  # as long as they are all that there are
        self._ledgers: dict[tuple[str, str], Ledger] = {}
        self._lines: dict[str, Line] = {}
        self._timers: dict[str, Timer] = {}
        self._num_waiting = 0
        self._latest_ns = 0
        self._service_mode = -1  # an operator's, for everybody
        self._sweep_at = SWEPT_FROM
        self._rejections: dict[str, int] = {}
        self._num_granted = 0
        self._num_freed = 0
        self._granted_tokens = 0
        self._settled_tokens = 0
        self._given_back_tokens = 0
        self._file: SpentFile | None = None
        self._remembered: dict[tuple[str | None, str | None, str], Spent] = {}
        self._begun_ns = self._now_ns()
        self._num_unwritten = 0
        if settings.state_file is not None:
            self._file = SpentFile(Path(settings.state_file))
            several = self._file.load(self._begun_ns + epoch_ns)
            self._remembered = {(each.model, each.tenant, each.what): each for each in several}

    # who asks

    def ledger(self, model: str, tenant: str) -> Ledger:
        """The books of a tenant's requests to a model ("name@version"). O(1)."""
        ledger = self._ledgers.get((model, tenant))
        if ledger is None:
            ledger = self._open(model, tenant)
        return ledger

    def reserve(self, request: Request, model: str, tokens: int, now_ns: int) -> Grant | None:
        """A grant at once, or None when the request has to wait. Raises OverQuota when waiting makes no sense.

        Whoever waits comes first: nothing is given to a newcomer past the line. Raises BadRequest for a request that
        no amount of waiting will let in.
        """
        ledger = self._ledgers.get((model, request.tenant)) or self._open(model, request.tenant)
        self._latest_ns = now_ns = max(now_ns, self._latest_ns)  # a clock that went back gives nothing twice
        for book in ledger.books:
            if book.mode and (refusal := self._refused_by_mode(book, request, now_ns)) is not None:
                raise refusal
        line = self._lines.get(ledger.name)
        if (line is None or not line.num_waiting) and ledger.reserve(tokens, now_ns):
            self._num_granted += 1
            self._granted_tokens += tokens
            return Grant(self, ledger, tokens, now_ns, self._num_granted)
        self._look_at_wait(ledger, request, tokens, now_ns)
        return None

    async def admit(self, request: Request, model: str, tokens: int | None = None) -> Grant:
        """A grant, after waiting for it if need be. Raises OverQuota, or DeadlinePassed while it waits."""
        wanted = request.max_tokens if tokens is None else tokens
        grant = self.reserve(request, model, wanted, self._now_ns())
        return grant if grant is not None else await self.wait(request, model, wanted)

    async def wait(self, request: Request, model: str, tokens: int) -> Grant:
        """A grant for whom `reserve` has told to wait. Raises OverQuota or DeadlinePassed while it waits."""
        return await self._wait(request, self.ledger(model, request.tenant), tokens)

    def never(self, model: str, tenant: str, tokens: Sequence[int]) -> BadRequest | None:
        """What to say to requests of so many tokens each that come together, and that nothing will ever let in."""
        for book in self.ledger(model, tenant).books:
            never = book.never(sum(tokens), len(tokens))
            if never is not None:
                what = f"{len(tokens)} requests of {sum(tokens)} tokens together never fit"
                return BadRequest(f"{what} {_whose(book)}, whose {never}")
        return None

    @property
    def has_limits(self) -> bool:
        """Whether anybody has any."""
        return self.settings.enabled and len(self.settings.limits) > 0

    @property
    def in_service(self) -> int:
        """Requests of all models that hold a place."""
        return self._num_granted - self._num_freed

    @property
    def num_waiting(self) -> int:
        """Requests of all models that wait for one."""
        return self._num_waiting

    # what comes back

    def refund(
        self,
        ledger: Ledger,
        tokens: int,
        used: int,
        granted_ns: int,
        number: int,
        places: list[tuple[int, int]],
        was_served: bool,
    ) -> None:
        """Of a reservation only so much was used. For `Grant`, which calls it once."""
        unused = tokens - used
        self._settled_tokens += used
        self._given_back_tokens += unused
        if was_served and not unused:
            return
        now_ns = self._now_ns()
        for book in ledger.books:
            book.refund_tokens(unused, granted_ns, number, now_ns)
            if not was_served:
                book.take_back(granted_ns, number, now_ns)
        for book, place in zip(ledger.books, places, strict=False):  # no places where nobody has bursts
            if number > book.bursts_from and (not was_served or book.gap_token or book.more is not None):
                book.refund_bursts(place, tokens, used, now_ns, was_served=was_served)
        line = self._lines.get(ledger.name)
        if line is not None and line.num_waiting:
            line.charge(ledger.tenant, -unused)

    def free(self, ledger: Ledger, tokens: int, granted_ns: int, number: int) -> None:
        """A request has ended: its place goes on. For `Grant`, which calls it once."""
        now_ns = self._now_ns()
        self._num_freed += 1
        ledger.release()
        if ledger.has_bursts:
            for book in ledger.books:
                if book.is_special and number > book.held_from:
                    book.held_tokens -= tokens
        mean_ns, served_ns = ledger.books[0].mean_service_ns, now_ns - granted_ns
        if served_ns:  # nobody used a place that was given back at once
            ledger.books[0].mean_service_ns += (
                SERVICE_SMOOTHING * (served_ns - mean_ns) if mean_ns else served_ns
            )
        if self._num_waiting:
            for name, line in self._lines.items():
                if line.places_of(ledger.tenant):
                    line.call_back(ledger.tenant)
                    self._pump(name)
                elif name == ledger.name:
                    self._pump(name)

    # modes and limits

    def mode(self, model: str, tenant: str) -> str:
        """The degradation mode that a tenant's requests to a model meet: the worst of their books'."""
        books, now_ns = self.ledger(model, tenant).books, self._now_ns()
        for book in books:
            if book.mode and now_ns >= book.turn_ns:
                book.roll(now_ns)
        return MODES[max([book.mode for book in books], default=0)]

    def settings_of(self, mode: str) -> ModeSettings:
        """What a mode does besides its own step."""
        return self.settings.modes.get(mode, ModeSettings())

    def set_mode(
        self, mode: str | None, *, model: str | None = None, tenant: str | None = None, by: str = "operator"
    ) -> None:
        """An operator's word on a model, on a tenant, or on both; on the whole service where neither is named.

        It holds until it is taken back with None. Raises BadRequest for a mode that does not exist.
        """
        if mode is not None and mode not in MODES:
            raise BadRequest(f"mode is {mode!r}, but must be one of {', '.join(MODES)}, or none")
        number, now_ns = -1 if mode is None else MODES.index(mode), self._now_ns()
        books = list(self._models.values())
        if model is None and tenant is None:
            self._service_mode = number
        elif model is not None and tenant is not None:
            name = _name(model)
            rule = self._pair_rule(model, tenant) or AllowanceSettings(model=name, tenant=tenant)
            books = [self._pair(name, tenant, rule)]
            self._ledgers = {key: each for key, each in self._ledgers.items() if key[1] != tenant}
        elif model is not None:
            books = [self._model(model)]
        else:
            assert tenant is not None
            books = [self._tenant(tenant, self._rule(None, tenant) or AllowanceSettings(tenant=tenant))]
            self._ledgers = {key: each for key, each in self._ledgers.items() if key[1] != tenant}
        for book in books:
            book.set_mode(number, by, now_ns)
        self._look_again()

    def reset(self, *, model: str | None = None, tenant: str | None = None) -> int:
        """Let what was used of windows and bursts count no more: a model's, a tenant's, or those of both together.

        Where neither is named, everybody's. Those in service keep their places, and those who wait are looked at
        again. How many books that were. Raises BadRequest for a tenant that has no limits of its own.
        """
        books, now_ns = self._named_books(model, tenant), self._now_ns()
        if model is None and tenant is None:
            self._forget_earlier_lives()
        for book in books:
            book.forgive(self._num_granted, now_ns)
        if self._file is not None:
            self._write_books(self._file, books)
        self._look_again()
        return len(books)

    def _named_books(self, model: str | None, tenant: str | None) -> list[Book]:
        """The books that an operator means. Raises BadRequest."""
        if model is None and tenant is None:
            return self._books()
        if tenant is None:
            assert model is not None
            return [self._model(model)]
        name = None if model is None else _name(model)
        book = self._tenants.get(tenant) if name is None else self._pairs.get((name, tenant))
        if book is not None:
            return [book]
        rule = self._rule(None, tenant) if model is None else self._pair_rule(model, tenant)
        if rule is None:
            where = "" if model is None else f" for model {model!r}"
            raise BadRequest(f"tenant is {tenant!r}, but must be one that has limits{where}")
        return [self._tenant(tenant, rule) if name is None else self._pair(name, tenant, rule)]

    def _forget_earlier_lives(self) -> None:
        """Of books that nobody has opened yet, nothing is used either."""
        earlier, self._remembered = list(self._remembered.values()), {}
        if self._file is not None:
            self._put(self._file, [replace(each, part=0, used=0) for each in earlier])

    def update(self, settings: QuotaSettings) -> None:
        """Other limits from now on. What is spent stays spent, and those who wait are looked at again."""
        self.settings = settings
        self.modes_cut = _cut(settings)
        now_ns = self._now_ns()
        self._ledgers.clear()
        for name, book in self._models.items():
            self._equip(book, self._model_rule(name), now_ns)
        for tenant, book in self._tenants.items():
            self._equip(book, self._rule(None, tenant) or AllowanceSettings(tenant=tenant), now_ns)
        for (name, tenant), book in self._pairs.items():
            rule = self._pair_rule(name, tenant) or AllowanceSettings(model=name, tenant=tenant)
            self._equip(book, rule, now_ns)
        for line in self._lines.values():
            line.update(settings.aging_s, settings.tenant_weights)
        self._look_again()

    def headroom(self, model: str, tenant: str | None = None) -> float:
        """The smallest remaining share of a model's limits, and of a tenant's where one is named: from 0 to 1."""
        now_ns = self._now_ns()
        books = [self._model(model)] if tenant is None else self.ledger(model, tenant).books
        return min([book.headroom(now_ns) for book in books], default=1.0)

    def headers(self, model: str, tenant: str, now_ns: int) -> dict[str, str]:
        """Of requests and of tokens the tightest window: limit, what is left, and when it is whole again."""
        found: dict[str, str] = {}
        books = self.ledger(model, tenant).books
        for book in books:
            if now_ns >= book.turn_ns:
                book.roll(now_ns)
        for what in ("requests", "tokens"):
            windows = [
                (window, total) for book in books for window, total in _windows(book) if total.name == what
            ]
            if windows:
                window, total = min(windows, key=_left_share)
                used = window.used(total.spent)
                found[f"x-ratelimit-limit-{what}"] = str(window.limit)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, window.limit - used))
                whole_ns = window.free_ns(window.limit, total.spent) if used else window.end_ns
                found[f"x-ratelimit-reset-{what}"] = duration(whole_ns - now_ns)
        return found

    def verdict(self, request: Request, model: str, now_ns: int) -> str:
        """What would be said to that request now, in words; nothing changes."""
        ledger = self.ledger(model, request.tenant)
        mode = self.mode(model, request.tenant)
        for book in ledger.books:
            reason, until_ns = book.blocked(request.max_tokens, now_ns)
            if reason:
                until = (
                    "until somebody leaves"
                    if until_ns is None
                    else f"for {(until_ns - now_ns) / NS_PER_S:.3f} s"
                )
                return f"{mode}: {_whose(book)} is at its limit of {reason} {until}"
        left = min([book.headroom(now_ns) for book in ledger.books], default=1.0)
        return f"{mode}: admitted, {left:.0%} of the tightest limit is left"

    def _now_ns(self) -> int:
        """The time, which never goes back here."""
        now_ns = self._clock.now_ns()
        if now_ns > self._latest_ns:  # noqa: PLR1730  a call more on every path
            self._latest_ns = now_ns
        return self._latest_ns

    # figures

    def used_ratios(self) -> Values:
        """The used share of each limit, by model, tenant and kind; the largest of those that stand as one."""
        if self._gauges is None:
            self._gauges = self._all_gauges()
        used: Values = {}
        for gauge in self._gauges:
            window, total, book = gauge.window, gauge.total, gauge.book
            if window is not None and total is not None:
                share = window.used(total.spent) / window.limit
            elif book.max_in_service < UNBOUNDED:
                share = book.in_service / book.max_in_service
            else:
                continue
            if share >= used.get(gauge.kind, 0.0):
                used[gauge.kind] = share
        return used

    def _all_gauges(self) -> list["Gauge"]:
        """What there is to look at of all books, until one comes, goes or has other limits."""
        gauges = []
        for book in self._books():
            names = self._labels(book)
            for window, total in _windows(book):
                gauges.append(Gauge((*names, f"{window.kind}_{total.name}"), book, window, total))
            gauges.append(Gauge((*names, "concurrent_requests"), book, None, None))
        return gauges

    def figures(self) -> Iterator[Figure]:
        """What is used of limits, modes, refusals and lines. Tenants without a rule of their own stand as "*"."""
        modes: Values = {}
        crossed: Values = {}
        for book in self._books():
            names = self._labels(book)
            modes[names] = max(modes.get(names, 0.0), float(book.mode))
            for share, number in book.num_crossed.items():
                label = (*names, f"{share:g}")
                crossed[label] = crossed.get(label, 0.0) + number
        whose = ("model_name", "tenant")
        yield Figure(
            "modelyard:quota_used_ratio",
            "Used share of a limit.",
            (*whose, "kind"),
            self.used_ratios(),
            is_gauge=True,
            largest=True,
        )
        yield Figure(
            "modelyard:quota_degradation_mode",
            "0 normal to 4 emergency.",
            whose,
            modes,
            is_gauge=True,
            largest=True,
        )
        yield Figure("modelyard:quota_soft_limits_passed", "Upward crossings.", (*whose, "share"), crossed)
        rejections: Values = {(reason,): float(number) for reason, number in self._rejections.items()}
        yield Figure("modelyard:quota_rejections", "Requests refused.", ("reason",), rejections)
        held = float(self._granted_tokens - self._settled_tokens - self._given_back_tokens)
        yield Figure(
            "modelyard:quota_reserved_tokens", "Reserved and not settled.", (), {(): held}, is_gauge=True
        )
        unwritten: Values = {(): float(self._num_unwritten)}
        yield Figure("modelyard:quota_state_failures", "What could not be written down.", (), unwritten)
        waiting: Values = {(name,): float(line.num_waiting) for name, line in self._lines.items()}
        yield Figure("modelyard:quota_waiting", "Requests in line.", ("model_name",), waiting, is_gauge=True)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not add up."""
        held = self._granted_tokens - self._settled_tokens - self._given_back_tokens
        assert held >= 0, "more was given back than granted"
        assert self.in_service >= 0, "more places were given back than granted"
        assert sum(book.in_service for book in self._models.values()) == self.in_service, "places are lost"
        for book in self._books():
            assert book.in_service >= 0, "a place was given back twice"
            assert book.held_tokens >= 0, "tokens were given back twice"
            for window, total in _windows(book):
                most, kind = max(window.limit, window.before), f"{window.kind} {total.name}"
                assert 0 <= window.used(total.spent) <= most, f"{kind}: {window.used(total.spent)} of {most}"

    # state

    def save(self) -> None:
        """Put what is spent into the state file, exactly."""
        if self._file is not None:
            self._save(self._file)

    def close(self) -> None:
        """Save, and let go of the file."""
        if self._file is not None:
            if self._save(self._file):
                self._file.finish()
            else:
                self._file.close()
            self._file = None

    def _save(self, file: SpentFile) -> bool:
        return self._write_books(file, self._books())

    def _write_books(self, file: SpentFile, books: list[Book]) -> bool:
        """Put down exactly what is spent; whether it could be."""
        several = [
            self._spent(book, window, total, window.used(total.spent))
            for book in books
            for window, total in _windows(book)
        ]
        several += [
            Spent(book.model, book.tenant, name, -(-arrival >> SCALE_BITS) + self._epoch_ns, 1, 0)
            for book in books
            for name, arrival, _ in book.bursts()
        ]
        if not self._put(file, several):
            return False
        for book in books:
            book.begin_lease()
        return True

    def _put(self, file: SpentFile, several: list[Spent]) -> bool:
        """Write down; whether it could be. A full disk stops nobody: limits hold, only a crash would forget."""
        try:
            file.put(several)
        except sqlite3.Error:
            self._num_unwritten += 1
            return False
        return True

    # books

    def _books(self) -> list[Book]:
        return [*self._models.values(), *self._tenants.values(), *self._pairs.values()]

    def _open(self, model: str, tenant: str) -> Ledger:
        if len(self._ledgers) >= self._sweep_at:
            self._sweep()
        books = [self._model(model)]
        name = _name(model)
        if self.settings.enabled:
            rule = self._rule(None, tenant)
            if rule is not None or tenant in self._tenants:
                books.append(self._tenant(tenant, rule or AllowanceSettings(tenant=tenant)))
            rule = self._pair_rule(model, tenant)
            if rule is not None or (name, tenant) in self._pairs:
                books.append(self._pair(name, tenant, rule or AllowanceSettings(model=name, tenant=tenant)))
        ledger = self._ledgers[model, tenant] = Ledger(model, name, tenant, books)
        return ledger

    def _model(self, model: str) -> Book:
        name = _name(model)
        book = self._models.get(name)
        if book is None:
            book = self._models[name] = self._make(name, None, self._model_rule(model))
            if self._service_mode >= 0:
                book.set_mode(self._service_mode, "operator", self._now_ns())
        return book

    def _tenant(self, tenant: str, rule: AllowanceSettings) -> Book:
        book = self._tenants.get(tenant)
        if book is None:
            book = self._tenants[tenant] = self._make(None, tenant, rule)
        return book

    def _pair(self, name: str, tenant: str, rule: AllowanceSettings) -> Book:
        book = self._pairs.get((name, tenant))
        if book is None:
            book = self._pairs[name, tenant] = self._make(name, tenant, rule)
        return book

    def _make(self, model: str | None, tenant: str | None, rule: AllowanceSettings) -> Book:
        now_ns = self._now_ns()
        book = Book(model, tenant, self.settings, self._observer)
        if self._file is not None:
            book.lender = self._lend
        self._equip(book, rule, now_ns)
        for window, total in _windows(book):
            self._recall(book, window, total)
        self._recall_bursts(book)
        book.begin_lease()
        book.look_again(now_ns)
        return book

    def _equip(self, book: Book, rule: AllowanceSettings, now_ns: int) -> None:
        self._gauges = None
        book.settings = self.settings
        day_ns = self._epoch_ns - round(self.settings.day_starts_at_s * NS_PER_S)
        book.allow(rule, now_ns, self._epoch_ns, day_ns, self._num_granted)
        book.begin_lease()

    def _rule(self, model: str | None, tenant: str | None) -> AllowanceSettings | None:
        """The rule for exactly these, or the one for each of them."""
        if not self.settings.enabled:
            return None
        names = (None,) if model is None else (model, _name(model), EACH)
        tenants = (None,) if tenant is None else (tenant, EACH)
        rules = {(rule.model, rule.tenant): rule for rule in self.settings.limits}
        for name in names:
            for each in tenants:
                if (name, each) in rules:
                    return rules[name, each]
        return None

    def _model_rule(self, model: str) -> AllowanceSettings:
        rule = self._rule(model, None)
        if not self.settings.enabled:
            return AllowanceSettings(model=model)
        if rule is None:
            return AllowanceSettings(model=model, concurrent_requests=self.settings.max_concurrent_requests)
        if rule.concurrent_requests is None:
            return replace(rule, concurrent_requests=self.settings.max_concurrent_requests)
        return rule

    def _pair_rule(self, model: str, tenant: str) -> AllowanceSettings | None:
        return self._rule(model, tenant)

    def _sweep(self) -> None:
        """Forget tenants that count nothing any more. Never one of whom a window still knows."""
        now_ns = self._now_ns()
        busy = {waiter.ledger.tenant for line in self._lines.values() for waiter in line.waiters()}
        self._tenants = self._counting(self._tenants, busy, now_ns)
        self._pairs = self._counting(self._pairs, busy, now_ns)
        self._gauges = None
        for key in list(self._ledgers):
            ledger = self._ledgers[key]
            model_alone = len(ledger.books) == 1
            gone = any(book.tenant is not None and not self._has(book) for book in ledger.books)
            if (model_alone or gone) and ledger.tenant not in busy:
                del self._ledgers[key]
        self._sweep_at = max(SWEPT_FROM, 2 * len(self._ledgers))

    def _counting(self, books: dict[Key, Book], busy: set[str], now_ns: int) -> dict[Key, Book]:
        """Those that know of something, or of somebody who waits."""
        return {
            key: book
            for key, book in books.items()
            if book.tenant in busy or not self._is_blank(book, now_ns)
        }

    def _has(self, book: Book) -> bool:
        assert book.tenant is not None
        found = (
            self._tenants.get(book.tenant)
            if book.model is None
            else self._pairs.get((book.model, book.tenant))
        )
        return found is book

    def _is_blank(self, book: Book, now_ns: int) -> bool:
        if book.in_service or book.operator_mode >= 0:
            return False
        book.roll(now_ns)
        if book.mode:
            return False
        used = any(window.used(total.spent) for window, total in _windows(book))
        return not used and book.headroom(now_ns) >= 1.0

    # the file

    def _lend(self, book: Book, total: Total, amount: int) -> None:
        """Write down that more will have been used, before it is."""
        assert self._file is not None
        smallest = min([window.limit for window in total.windows], default=0)
        mark = total.spent + amount + int(self.settings.lease * smallest)
        several = [
            self._spent(
                book, window, total, min(window.limit, mark - (total.spent - window.used(total.spent)))
            )
            for window in total.windows
        ]
        self._put(self._file, several)
        total.mark = mark
        book.set_ceilings()

    def _spent(self, book: Book, window: Window, total: Total, used: int) -> Spent:
        what, part = f"{window.kind}_{total.name}", window.index
        if used == window.used(total.spent):  # exact: nothing more is promised to the present part
            part = window.latest(total.spent)
        return Spent(book.model, book.tenant, what, part, window.part_ns, used)

    def _recall(self, book: Book, window: Window, total: Total) -> None:
        """What an earlier life has used of a window. A window that lies ahead of us counts: a clock went back."""
        spent = self._remembered.get((book.model, book.tenant, f"{window.kind}_{total.name}"))
        if spent is None or spent.part_ns != window.part_ns or spent.part + window.span < window.index:
            return
        window.index = max(window.index, spent.part)
        window.end_ns = (window.index + 1) * window.part_ns - window.offset_ns
        window.marks.clear()
        window.marks.append([spent.part, total.spent - spent.used])
        window.before = spent.used
        if spent.part < window.index:
            window.marks.append([window.index, total.spent])

    def _recall_bursts(self, book: Book) -> None:
        """Where burst limits had stood. After a life that was cut off nobody knows: they begin spent, and fill."""
        if self._file is None:
            return
        for name, _, slack in book.bursts():
            spent = self._remembered.get((book.model, book.tenant, name))
            latest = (self._begun_ns << SCALE_BITS) + slack
            if self._file.was_cut:
                book.resume_burst(name, latest)
            elif spent is not None:
                book.resume_burst(name, min(latest, (spent.part - self._epoch_ns) << SCALE_BITS))

    # waiting

    def _refused_by_mode(self, book: Book, request: Request, now_ns: int) -> OverQuota | None:
        """What to say when a book's mode has no place for requests of this priority."""
        if now_ns >= book.turn_ns:
            book.roll(now_ns)
        if not book.refuses(request.priority):
            return None
        mode = MODES[book.mode]
        least = self.settings_of(mode).min_priority
        what = f"{_whose(book)} is in mode {mode}, in which priority must be at least {least}"
        accepts_ns = book.accepts_ns(request.priority, now_ns)
        return self._refusal(what, mode, (accepts_ns - now_ns) / NS_PER_S, book)

    def _refused_by_modes(self, waiter: Waiter, now_ns: int) -> OverQuota | None:
        """What to say to somebody in line for whom a mode that has begun since has no place."""
        for book in waiter.ledger.books:
            if book.mode and (refusal := self._refused_by_mode(book, waiter.request, now_ns)) is not None:
                return refusal
        return None

    def _look_at_wait(self, ledger: Ledger, request: Request, tokens: int, now_ns: int) -> None:
        """Raise OverQuota when there is no sense or no room for waiting; make room where somebody has too much."""
        error = self._never(ledger, tokens)
        if error is not None:
            raise error
        longest_ns, closest = self._longest(ledger, tokens, now_ns)
        if closest is not None and longest_ns - now_ns > self._patience_ns:
            raise self._too_long(closest, ledger, tokens, now_ns)
        line = self._lines.get(ledger.name)
        if line is None:
            line = self._lines[ledger.name] = Line(self.settings.aging_s, self.settings.tenant_weights)
        if line.num_waiting < self.settings.queue_capacity:
            return
        model = self._model(ledger.model)
        what = f"{ledger.model!r} has {model.in_service} requests in service and {line.num_waiting} waiting, "
        what += "the most that its quota allows"
        retry_after_s = max(self._retry_after_s(ledger, model, line), (longest_ns - now_ns) / NS_PER_S)
        fullest = line.fullest()
        if fullest is not None and line.places_of(fullest) > line.places_of(ledger.tenant) + 1:
            refusal = self._refusal(what, "queue_full", retry_after_s, model)
            self._send_away(line, line.last_of(fullest), refusal)
            return
        raise self._refusal(what, "queue_full", retry_after_s, model)

    def _never(self, ledger: Ledger, tokens: int) -> BadRequest | None:
        """What to say to a request that no amount of waiting will let in."""
        for book in ledger.books:
            never = book.never(tokens)
            if never is not None:
                return BadRequest(f"{tokens} tokens never fit {_whose(book)}, whose {never}")
        return None

    @property
    def _patience_ns(self) -> int:
        """How long somebody may wait for a limit that time lifts."""
        return round(self.settings.max_wait_s * NS_PER_S)

    def _too_long(self, book: Book, ledger: Ledger, tokens: int, now_ns: int) -> OverQuota:
        """What to say when time will not lift a book's limit soon enough."""
        reason, _ = book.blocked(tokens, now_ns)
        when_ns = max(each.promise_ns(tokens, now_ns) for each in ledger.books)
        what = f"{_whose(book)} is at its limit of {reason}"
        return self._refusal(what, reason, (when_ns - now_ns) / NS_PER_S, book)

    def _longest(self, ledger: Ledger, tokens: int, now_ns: int) -> tuple[int, Book | None]:
        """The book whose limit time lifts last: when, and which; None where only others who leave can help."""
        longest_ns, closest = now_ns, None
        for book in ledger.books:
            _, until_ns = book.blocked(tokens, now_ns)
            if until_ns is not None and until_ns > longest_ns:
                longest_ns, closest = until_ns, book
        return longest_ns, closest

    async def _wait(self, request: Request, ledger: Ledger, tokens: int) -> Grant:
        clock, now_ns = self._clock, self._now_ns()
        patience_ns = self._patience_ns
        waiter = Waiter(request, ledger, tokens, clock.signal(), now_ns, patience_ns)
        line = self._lines[ledger.name]
        line.add(waiter)
        self._num_waiting += 1
        until_ns = request.deadline_ns
        _, closest = self._longest(ledger, tokens, now_ns)
        if closest is not None:
            until_ns = min(UNBOUNDED if until_ns is None else until_ns, now_ns + patience_ns)
        timer = None
        if until_ns is not None:
            timer = clock.call_later(max(0, until_ns - now_ns), waiter.signal.set)
        self._pump(ledger.name)
        try:
            await waiter.signal.wait()
        except (
            BaseException
        ):  # the caller is gone: its place in the line, or what it has just got, goes to the next
            if isinstance(waiter.grant, Grant):
                waiter.grant.release()
            else:
                self._leave(line, waiter)
                self._pump(ledger.name)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if isinstance(waiter.grant, Grant):
            return waiter.grant
        self._leave(line, waiter)
        if waiter.error is not None:
            raise waiter.error
        self._pump(ledger.name)
        raise self._too_late(waiter)

    def _too_late(self, waiter: Waiter) -> OverQuota | DeadlinePassed:
        """What to say to a waiter whose deadline has passed, or our patience."""
        request, ledger, now_ns = waiter.request, waiter.ledger, self._now_ns()
        if request.deadline_ns is not None and request.deadline_ns <= now_ns:
            return DeadlinePassed(
                f"the deadline of request {request.id} passed while it waited for {ledger.model!r}"
            )
        when_ns = max([book.promise_ns(waiter.tokens, now_ns) for book in ledger.books])
        _, closest = self._longest(ledger, waiter.tokens, now_ns)
        book = closest or ledger.books[0]
        reason, _ = book.blocked(waiter.tokens, now_ns)
        what = f"{_whose(book)} is at its limit of {reason or 'what others wait for'}"
        wait_s = max(
            (when_ns - now_ns) / NS_PER_S,
            self._retry_after_s(ledger, ledger.books[0], self._lines[ledger.name]),
        )
        return self._refusal(what, reason or "max_wait", wait_s, book)

    def _leave(self, line: Line, waiter: Waiter) -> None:
        if not waiter.is_gone:
            line.leave(waiter)
            self._num_waiting -= 1

    def _pump(self, name: str) -> None:
        """Let in whoever can be, in their order."""
        line, now_ns = self._lines.get(name), self._now_ns()
        if line is None or not line.num_waiting:
            return
        line.call_back_due(now_ns)
        soonest_ns = UNBOUNDED
        while (waiter := line.next()) is not None:
            if self._is_answered(line, waiter, now_ns):
                continue
            book = waiter.ledger.blocked_by
            assert book is not None
            _, until_ns = book.blocked(waiter.tokens, now_ns)
            if until_ns is not None and until_ns - now_ns > self._patience_ns:
                error = self._too_long(book, waiter.ledger, waiter.tokens, now_ns)
                self._send_away(line, waiter, error)
            elif book.tenant is None:
                soonest_ns = UNBOUNDED if until_ns is None else until_ns
                break  # whoever is behind must not overtake, however small
            else:
                line.set_aside(waiter.ledger.tenant, until_ns)
        back_ns = line.back_ns()
        self._wake(name, soonest_ns if back_ns is None else min(soonest_ns, back_ns), now_ns)

    def _is_answered(self, line: Line, waiter: Waiter, now_ns: int) -> bool:
        """Whether there is room for a waiter, or a mode has none for it: either way it has left the line."""
        refusal = self._refused_by_modes(waiter, now_ns)
        if refusal is not None:
            self._send_away(line, waiter, refusal)
            return True
        ledger = waiter.ledger
        if not ledger.reserve(waiter.tokens, now_ns):
            return False
        self._num_granted += 1
        self._granted_tokens += waiter.tokens
        line.charge(ledger.tenant, waiter.tokens)
        self._leave(line, waiter)
        waiter.grant = Grant(self, ledger, waiter.tokens, now_ns, self._num_granted)
        waiter.signal.set()
        return True

    def _send_away(self, line: Line, waiter: Waiter, error: OverQuota | BadRequest) -> None:
        waiter.error = error
        self._leave(line, waiter)
        waiter.signal.set()

    def _wake(self, name: str, at_ns: int, now_ns: int) -> None:
        """Look at a line again at that time, and not at the one that was agreed on before."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        if at_ns < UNBOUNDED:
            self._timers[name] = self._clock.call_later(max(1, at_ns - now_ns), partial(self._pump, name))

    def _look_again(self) -> None:
        """Limits or modes have changed: whoever waits has other books, and may have room, or never will."""
        for name, line in self._lines.items():
            for waiter in line.waiters():
                waiter.ledger = self.ledger(waiter.ledger.model, waiter.ledger.tenant)
                error = self._never(waiter.ledger, waiter.tokens)
                if error is not None:
                    self._send_away(line, waiter, error)
            line.call_back_all()
            self._pump(name)

    def _retry_after_s(self, ledger: Ledger, model: Book, line: Line) -> float:
        """When a place should be free behind those who wait, by the mean service time."""
        mean_ns = ledger.books[0].mean_service_ns
        if not mean_ns or model.max_in_service >= UNBOUNDED:
            return UNKNOWN_RETRY_AFTER_S
        return mean_ns * (line.num_waiting + 1) / model.max_in_service / NS_PER_S

    def _refusal(self, what: str, reason: str, retry_after_s: float, book: Book) -> OverQuota:
        self._rejections[reason] = self._rejections.get(reason, 0) + 1
        message = f"{what}; try again in {retry_after_s:.3f} s"
        return OverQuota(
            message, retry_after_s=retry_after_s, limit=reason, is_of_model=book.model is not None
        )

    def _labels(self, book: Book) -> tuple[str, str]:
        """A book's names for metrics: few, whoever calls."""
        tenant = book.tenant
        if tenant is None:
            return book.model or "", ""
        has_rule = tenant in [rule.tenant for rule in self.settings.limits]
        return book.model or "", tenant if has_rule else EACH


def duration(time_ns: int) -> str:
    """A time as OpenAI's headers have it: 350ms, 1s, 6m0s, 2h5m0s; rounded up."""
    left_ns = max(0, time_ns)
    if left_ns < NS_PER_S:
        return f"{-(-left_ns // 1_000_000)}ms"
    seconds = -(-left_ns // NS_PER_S)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _cut(settings: QuotaSettings) -> bool:
    """Whether a mode shortens answers."""
    return any(mode.max_output_tokens is not None for mode in settings.modes.values())


def _name(model: str) -> str:
    return model.partition("@")[0]


def _whose(book: Book) -> str:
    if book.model is None:
        return f"tenant {book.tenant!r}"
    return f"model {book.model!r}" + (f" for tenant {book.tenant!r}" if book.tenant is not None else "")


def _windows(book: Book) -> Iterator[tuple[Window, Total]]:
    for total in (book.tokens, book.requests):
        for window in total.windows:
            yield window, total


def _left_share(entry: tuple[Window, Total]) -> float:
    window, total = entry
    return (window.limit - window.used(total.spent)) / window.limit
