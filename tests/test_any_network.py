"""Any network works as plain torch says, or is refused in one sentence: networks that hypothesis writes as text.

A failing network is printed as the smallest program that fails. `python -m benchmarks networks` tries 2,000.
"""

import ast
import importlib
import inspect
import pkgutil
import random
import re
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kd_lab
from benchmarks import _promises
from benchmarks._judge import BROKEN, Case, Difference, judge
from benchmarks._networks import (
    ANYWHERE,
    ENDS,
    LAST,
    MAPS,
    NAMED,
    PLAIN_MAPS,
    PLAIN_VECTORS,
    SEQUENCES,
    STATES,
    VECTORS,
    Network,
    random_network,
)
from benchmarks._promises import ALL, SLOW
from kd_lab.errors import ParameterError

FEW = 2
# Of the benchmark's networks the first that have a piece or a state which none before has.
SEEDS = (*range(13), 14, 16, 18, 19, 20, 21, 23, 24, 25, 30, 32, 33, 34, 43, 50, 54, 57, 60, 70, 112)
NEED_NO_PROMISE = {
    "CompressionResult": "compress() makes it",
    "IntegerLayer": "to_integer() makes it",
    "IntegerLinear": "to_integer() makes it",
    "export_litert": "it needs a converter that takes half a minute; exported_program() is what it hands over",
    "predict_classes_by_batch": "accuracy() and the panels are made of it",
}


@st.composite
def networks(draw) -> Network:
    """Return a random network: hypothesis decides, and looks for the simplest one that fails."""
    return random_network(lambda options: draw(st.sampled_from(options)))


def hold(network: Network, functions: Iterable[str] = ALL) -> None:
    """Fail with all promises that a network breaks."""
    judged = {function: judge(network, ALL[function]) for function in functions}
    broken = {function: said for function, (outcome, *said) in judged.items() if outcome in BROKEN}
    assert not broken, f"{broken} by\n{network!r}"


quietly = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@settings(quietly, max_examples=FEW)
@given(network=networks())
def test_a_network_works_or_is_refused(network):
    hold(network)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_networks_of_every_kind_work_or_are_refused(seed):
    hold(random_network(random.Random(seed).choice))


@pytest.mark.slow
def test_these_networks_have_every_kind_of_piece_and_of_state():
    found = set().union(*(random_network(random.Random(seed).choice).kinds for seed in SEEDS))
    pieces = PLAIN_MAPS, PLAIN_VECTORS, ANYWHERE, VECTORS, MAPS, SEQUENCES, ENDS, LAST, STATES
    assert found >= set().union(*pieces) - {""}


@pytest.mark.parametrize("name", ["text_classifier", pytest.param("lenet", marks=pytest.mark.slow)])
def test_a_network_that_people_know_works_or_is_refused(name):
    hold(NAMED[name])


def public() -> Iterator[tuple[str, Callable]]:
    """Yield all functions and classes that a learner imports: from a folder, or from a module beside the folders."""
    for module in (importlib.import_module(f"kd_lab.{each.name}") for each in pkgutil.iter_modules(kd_lab.__path__)):
        for name, value in vars(module).items():
            own = str(getattr(value, "__module__", "")).startswith(module.__name__)
            if callable(value) and own and not name.startswith("_"):
                yield name, value


def takes_a_network(called: Callable) -> bool:
    """Return whether a function, a class or what it makes takes a network, or a function that gives one."""
    parts = [called.__init__, vars(called).get("__call__")] if isinstance(called, type) else [called]
    taken = [dict(getattr(part, "__annotations__", {})) | {"return": None, "self": None} for part in parts]
    return any("torch.nn.modules.module.Module" in str(kind) for kinds in taken for kind in kinds.values())


def test_every_public_function_that_takes_a_network_has_a_promise():
    promised = set(re.findall(r"\w+", " ".join([*SLOW, *ALL])))
    nodes = list(ast.walk(ast.parse(inspect.getsource(_promises))))
    called = {getattr(node, "attr", getattr(node, "id", None)) for node in nodes}
    taking = {name for name, value in public() if takes_a_network(value)}
    assert taking >= {
        "prune",
        "hard_prune",
        "train",
        "compress",
        "scorecard",
        "PruningPanel",
        "Share",
        "search_settings",
    }
    assert taking - (promised & called) == NEED_NO_PROMISE.keys()


def test_a_judge_tells_what_became_of_a_call():
    network = random_network(random.Random(0).choice)

    def refuse(_case: Case) -> None:
        raise ParameterError("no")

    def differ(_case: Case) -> None:
        raise Difference("other logits")

    def change(case: Case) -> None:
        case.model.train(not case.model.training)

    assert judge(network, refuse) == ("refused", "no")
    assert judge(network, differ) == ("silent", "other logits")
    assert judge(network, change) == ("silent", "the argument was changed: mode of ")
    assert judge(network, lambda case: case.nothing)[0] == "raw"
    assert judge(network, lambda case: None) == ("worked", "")


def test_a_network_is_the_same_each_time_it_is_built():
    for seed in range(10):
        network = random_network(random.Random(seed).choice)
        one, other = (network.build().eval()(network.data()[0]) for _ in range(2))
        assert one.equal(other)
        assert one.shape == (len(network.data()[1]), network.classes)
