"""What the tests of panels that train share."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def losses_in(monkeypatch) -> Callable[[ModuleType], list]:
    """Return a function that gives the losses of the trainings that a module begins from then on, in turn."""

    def listen(module: ModuleType) -> list:
        losses, begin = [], module.train_live
        monkeypatch.setattr(
            module,
            "train_live",
            lambda model, data, loss, **settings: losses.append(loss) or begin(model, data, loss, **settings),
        )
        return losses

    return listen
