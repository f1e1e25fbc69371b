"""Whatever is done to a registry, in any order, it answers as a plain list that is searched each time would."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from semver import Version

from engine.errors import BadSettings, NotFound
from engine.registry import Health, Model, Registry

NAMES = ["llama", "phi", "chat", "talk"]
VERSIONS = ["0.1.0", "0.2.0", "1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1", "2.0.0"]
RANGES = ["*", "1", "1.x", "^1", "^1.2", "~1.2", "^0.1", ">=1", ">=1 <2", ">1,<=1.10.0", "<1", ">=2.0.0-rc.0"]
TARGETS = [*NAMES, *[f"{name}@{text}" for name in NAMES for text in ["1.0.0", "^1", "*"]]]
TAGS = st.lists(st.sampled_from(["x", "y", "z"]), unique=True).map(tuple)
SERVICEABLE = {Health.HEALTHY, Health.DEGRADED, Health.LOADING, Health.UNLOADED}


def fits(version, text):
    """What the ranges above mean, said once more in another way: by comparing the numbers."""
    if text in VERSIONS:
        return version == text
    parsed = Version.parse(version)
    numbers = (parsed.major, parsed.minor, parsed.patch)
    if parsed.prerelease:
        return text == ">=2.0.0-rc.0"
    return {
        "*": True,
        "1": numbers[0] == 1,
        "1.x": numbers[0] == 1,
        "^1": numbers[0] == 1,
        "^1.2": (1, 2, 0) <= numbers < (2, 0, 0),
        "~1.2": numbers[:2] == (1, 2),
        "^0.1": numbers[:2] == (0, 1),
        ">=1": numbers >= (1, 0, 0),
        ">=1 <2": numbers[0] == 1,
        ">1,<=1.10.0": False,  # above every 1.x, and at most 1.10.0
        "<1": numbers[0] == 0,
        ">=2.0.0-rc.0": numbers >= (2, 0, 0),
    }[text]


class RegistryMachine(RuleBasedStateMachine):
    """The registry beside a list of [name, version, state, tags, uses] and a dictionary of aliases."""

    def __init__(self):
        super().__init__()
        self.registry = Registry()
        self.models, self.aliases = [], {}
        self.edited, self.kept_uses = {}, {}  # what outlives a removal

    def oracle(self, asked):
        texts = []
        bare, at, text = asked.partition("@")
        while True:
            texts += [text] if at else []
            if bare not in self.aliases:
                break
            bare, at, text = self.aliases[bare].partition("@")
        mine = [each for each in self.models if each[0] == bare]
        mine = [each for each in mine if all(fits(each[1], text) for text in texts)]
        if not texts:
            mine = [each for each in mine if "-" not in each[1]] or mine
        mine.sort(key=lambda each: Version.parse(each[1]))
        good = [each for each in mine if each[2] in SERVICEABLE]
        return (good or mine or [None])[-1]

    def reaches(self, name, target):
        """Whether following the aliases from `target` comes to `name`."""
        place = target.partition("@")[0]
        while place != name and place in self.aliases:
            place = self.aliases[place].partition("@")[0]
        return place == name

    @rule(
        name=st.sampled_from(NAMES),
        version=st.sampled_from(VERSIONS),
        state=st.sampled_from(list(Health)),
        tags=TAGS,
    )
    def add(self, name, version, state, tags):
        taken = name in self.aliases or any(each[:2] == [name, version] for each in self.models)
        try:
            self.registry.add(Model(name=name, version=version, state=state, tags=tags))
        except BadSettings:
            assert taken
        else:
            assert not taken
            tags = self.edited.get((name, version), tags)
            self.models.append([name, version, state, tags, self.kept_uses.get((name, version), 0)])

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def remove(self, data):
        model = data.draw(st.sampled_from(self.models))
        self.models.remove(model)
        self.registry.remove("@".join(model[:2]))
        self.kept_uses[tuple(model[:2])] = model[4]

    @precondition(lambda self: self.models)
    @rule(data=st.data(), state=st.sampled_from(list(Health)))
    def set_state(self, data, state):
        model = data.draw(st.sampled_from(self.models))
        model[2] = state
        self.registry.set_state("@".join(model[:2]), state, "because")

    @rule(name=st.sampled_from(NAMES), meaning=st.sampled_from(TARGETS))
    def alias(self, name, meaning):
        is_model = any(each[0] == name for each in self.models)
        refused = is_model or self.aliases.get(name, meaning) != meaning or self.reaches(name, meaning)
        try:
            self.registry.alias(name, meaning)
        except BadSettings:
            assert refused
        else:
            assert not refused
            self.aliases[name] = meaning

    @precondition(lambda self: self.models)
    @rule(data=st.data(), tags=TAGS)
    def edit(self, data, tags):
        model = data.draw(st.sampled_from(self.models))
        model[3] = self.edited[tuple(model[:2])] = tags
        self.registry.edit("@".join(model[:2]), tags=tags)

    @rule(name=st.sampled_from(NAMES), now_ns=st.integers(0, 100))
    def used(self, name, now_ns):
        model = self.oracle(name)
        if model is not None:
            model[4] += 1
            self.registry.used(self.registry.find(name), now_ns)

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from([None, *VERSIONS, *RANGES]))
    def find(self, name, text):
        asked = name if text is None else f"{name}@{text}"
        meant = self.oracle(asked)
        try:
            model = self.registry.find(asked)
        except NotFound:
            assert meant is None
        else:
            assert [model.name, model.version, model.state, model.use_count] == [*meant[:3], meant[4]]

    @invariant()
    def it_is_whole(self):
        self.registry.check_integrity()
        keys = sorted("@".join(each[:2]) for each in self.models)
        assert [model.key for model in self.registry.all()] == keys
        for tag in "xyz":
            tagged = sorted("@".join(each[:2]) for each in self.models if tag in each[3])
            assert [model.key for model in self.registry.with_tag(tag)] == tagged


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
