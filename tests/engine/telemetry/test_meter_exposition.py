"""The text of a scrape: the same samples as the client library's, in both formats, and never too many names."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse

from engine.figures import Distribution, Figure, Histogram, LogHistogram
from engine.telemetry import Ended, FellBack, Meter, ModelMoved, render
from engine.telemetry.exposition import MAX_VALUES, OPEN_METRICS, OTHER, PLAIN

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""What Prometheus 2 accepts, word for word."""

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)

words = st.text(alphabet=st.sampled_from('ab"\\\n {}=,\N{SNOWMAN}'), max_size=6)
numbers = st.integers(-10, 10**15) | st.floats(0, 1e12)


def end_of(model, number=0):
    return Ended(
        at_ns=400 + number,
        request_id=number,
        tenant="t",
        session=None,
        model_requested=model,
        arrival_ns=0,
        prompt_tokens=1,
        outcome="completed",
        model=model,
        replica=f"replica of {model}",
        first_token_ns=10,
        output_tokens=2,
    )


def samples(families):
    return sorted(
        [(family.name, family.type, each.name, sorted(each.labels.items()), each.value)
         for family in families for each in family.samples]
    )  # fmt: skip


def of_library(meter, generate):
    registry = CollectorRegistry()
    registry.register(meter)
    return generate(registry).decode()


@settings(max_examples=20, deadline=None)
@given(
    gauge=st.dictionaries(st.tuples(words, words), numbers, max_size=4),
    counter=st.dictionaries(st.tuples(words), st.integers(0, 10**12), max_size=4),
    durations=st.lists(st.integers(0, 10**11), max_size=20),
)
def test_the_text_says_what_the_client_library_would_say(gauge, counter, durations):
    spread, sizes, plain = Histogram(), LogHistogram(5), Histogram((0.5,))
    for duration in durations:
        spread.observe(duration)
        sizes.observe(duration)
        plain.observe(duration)
    meter = Meter()
    meter.emit(end_of('a "model"'))
    meter.emit(ModelMoved(1, "m", "unloaded", "loading", "asked for"))
    meter.sources.append(
        lambda: (
            Figure("modelyard:g", 'a "gauge"\\', ("z", "a"), gauge, is_gauge=True),
            Figure("modelyard:c", "a counter\nof two lines", ("name",), counter),
            Distribution(
                "modelyard:d", "durations", ("model", "zone"), {('m"', "\\"): spread, ("n", ""): sizes}
            ),
            Distribution("modelyard:p", "plain", (), {(): plain}),
        )
    )
    text = meter.exposition()
    assert samples(parse(text)) == samples(parse(of_library(meter, generate_latest)))
    open_text = render(meter, PROMETHEUS)[0].decode()
    # its other ways to escape put underscores for the colons of names
    expected = of_library(meter, partial(generate_open_metrics, escaping="allow-utf-8"))
    assert samples(parse_open_metrics(open_text)) == samples(parse_open_metrics(expected))
    assert [line for line in open_text.splitlines() if line[0] == "#"] == [
        line for line in expected.splitlines() if line[0] == "#"
    ]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain", PLAIN),
        ("application/json", PLAIN),
        (PROMETHEUS, OPEN_METRICS),
        (PROMETHEUS_3, OPEN_METRICS),
        ("application/openmetrics-text", OPEN_METRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPEN_METRICS),
        ("application/openmetrics-text; version=0.0.1", PLAIN),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", PLAIN),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text;q=very", PLAIN),
        (";;,=,q=;version", PLAIN),
    ],
)
def test_open_metrics_is_for_those_who_ask_for_it(accept, kind):
    body, content_type = render(Meter(), accept)
    assert content_type == kind
    assert body.endswith(b"# EOF\n") == (kind == OPEN_METRICS)


def test_ten_thousand_names_become_a_thousand_and_one():
    meter = Meter()
    for number in range(10_000):
        meter.emit(end_of(f"model-{number}", number))
        meter.emit(FellBack(1, number, "x", f"model-{number}", "no_replica"))
        meter.emit(ModelMoved(1, f"model-{number}", "unloaded", "loading", "asked for"))
    for number in range(10_000):
        meter.emit(ModelMoved(2, f"model-{number}", "loading", "healthy", "loaded"))
    told = {}
    for family in meter.families():
        for place, label in enumerate(family.labels):
            values = {names[place] for names in family.values}
            assert len(values) <= MAX_VALUES + 1, f"{family.name} has {len(values)} values of {label}"
            if label == "model_name":
                others = [value for names, value in family.values.items() if names[place] == OTHER]
                told[family.name] = sum(sum(getattr(value, "counts", [value])) for value in others)
    assert told["modelyard:requests"] == 10_000 - MAX_VALUES
    assert told["vllm:prompt_tokens"] == 10_000 - MAX_VALUES
    assert told["modelyard:router_fallbacks"] == 10_000 - MAX_VALUES
    assert told["modelyard:model_load_seconds"] == 10_000 - MAX_VALUES


@pytest.mark.parametrize(("largest", "expected"), [(False, 9_000 * 0.5), (True, 0.5)])
def test_names_of_sources_are_bounded_too_and_who_was_there_first_stays(largest, expected):
    meter, names = Meter(), [f"late-{number}" for number in range(10_000)]
    values = {("early",): 2.0}
    meter.sources.append(
        lambda: (Figure("modelyard:g", "", ("who",), values, is_gauge=True, largest=largest),)
    )
    assert 'modelyard:g{who="early"} 2.0' in meter.exposition()
    values = dict.fromkeys([(name,) for name in names], 0.5) | values
    told = {each.labels["who"]: each.value for family in parse(meter.exposition())
            if family.name == "modelyard:g" for each in family.samples}  # fmt: skip
    assert len(told) == MAX_VALUES + 1
    assert told["early"] == 2.0
    assert told[OTHER] == pytest.approx(expected + (0 if largest else 0.5))


def test_names_of_one_label_do_not_use_up_those_of_another():
    meter = Meter()
    pairs = {(str(number), str(number % 3)): 1.0 for number in range(MAX_VALUES)}
    meter.sources.append(lambda: (Figure("modelyard:g", "", ("a", "b"), pairs, is_gauge=True),))
    assert OTHER not in meter.exposition()
