"""Compress a trained network by a recipe of stages, while the network as it was teaches it: supervised fine-tuning.

Between two stages a network is plain numbers, so each stage can be left out, swapped, or kept in a file; a weight of
zero stays zero.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.compression.stages import BY_LAYER, Factorize, FineTuning, PruneUnits, RecipeTuning, Stage, with_masks
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.distillation.answers import check_teacher
from kd_lab.errors import ParameterError, StorageError, check_choice, check_kind, check_number, check_that
from kd_lab.evaluation import Checked, check_data
from kd_lab.formats.kdz import FLOAT32_BYTES, load_packed, pack, packable, save_packed
from kd_lab.formats.outlines import as_unpacked
from kd_lab.networks.layers import weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.penalties import l2_penalty
from kd_lab.pruning import channel_groups
from kd_lab.pruning.schedules import check_returned, keep_finished
from kd_lab.scorecard import Scorecard, Table, scorecard
from kd_lab.storage import cache_key, file_path, set_aside, writable
from kd_lab.training import Settings, train

SETTINGS = [field.name for field in fields(Settings) if field.name != "epochs"]  # which a stage has of its own
ROWS = ("accuracy", "95 % interval", "gain, points", "gain, 95 % interval", "non-zero", "MACs")
LATENCY = "1 image, ms"


@dataclass(frozen=True, repr=False)
class CompressionResult(Table):
    """The network after each stage, the first being the one that it began with; shown as a table.

    `card` was measured on the validation part; `bytes` are those of the file that `save_packed` makes.
    """

    models: dict[str, nn.Module]
    card: Scorecard
    bytes: dict[str, int]
    complete: bool

    @property
    def model(self) -> nn.Module:
        """Return the network after the last stage that was finished."""
        return list(self.models.values())[-1]

    @property
    def ratio(self) -> float:
        """Return the bytes of all weights and biases in float32 over those of the last file."""
        return self._ratio(list(self.bytes)[-1])

    def _ratio(self, stage: str) -> float:
        return FLOAT32_BYTES * count_parameters(next(iter(self.models.values()))) / self.bytes[stage]

    def _rows(self) -> Iterator[list[str]]:
        yield ["after", *ROWS, "1 image", ".kdz, bytes", "ratio"]
        for stage, size in self.bytes.items():
            card = self.card[stage].lines()
            yield [stage, *(card[row] for row in ROWS), f"{card[LATENCY]} ms", f"{size:,}", f"{self._ratio(stage):.1f}"]


def compress(
    model: nn.Module,
    teacher: nn.Module | None,
    data: Mnist,
    stages: Sequence[Stage],
    *,
    temperature: float = 4.0,
    alpha: float = 0.1,
    strength: float = 0.0,
    folder: Path | None = None,
    **settings,
) -> CompressionResult:
    """Put a network through the stages, one of the kit or an nn.Sequential that `pack` takes; return what each made.

    Fine-tuning makes L(teacher's answers, the network's) + strength·Σw² small: L is the `DistillationLoss`, or the
    cross-entropy with the labels where `teacher` is None. `settings` are those of `train`. With a `folder` each
    finished stage is kept there, and a call with the same arguments goes on behind the last; an interrupt, or an error
    in a later stage, ends the recipe with the stages that were finished. Share, Quantize and Grid come last, since
    fine-tuning behind them would undo them. The layers of a Sequential are named as the kit's are, conv1, pool1, conv2,
    …, and so again behind each stage: a file keeps no names.
    """
    teaching = check_recipe(model, teacher, data, settings, folder)
    model = as_unpacked(make_permanent(model))
    _check_stages(model, stages, folder)
    strength = check_number("strength", strength, "[0, 100]")
    made: dict[str, nn.Module] = {}
    with keep_finished(made, "stages", len(stages)):
        for stage, finished in run_stages(model, teaching, stages, temperature, alpha, strength):
            made[f"{len(made) + 1} {stage}"] = finished
    models = {"start": make_permanent(model).eval(), **made}
    sizes = {key: len(pack(each)) for key, each in models.items()}
    return CompressionResult(models, scorecard(models, teaching.validation), sizes, len(models) > len(stages))


def check_recipe(
    model: nn.Module, teacher: nn.Module | None, data: Mnist, settings: dict, folder: Path | None = None
) -> "Teaching":
    """Return the data, looked at once, with the teacher; raise a ParameterError unless all can go through a recipe."""
    check_kind("folder", folder, (str, Path, type(None)), "the path of a folder, or None")
    folder = None if folder is None else file_path(folder)
    check_that("folder", folder, folder is None or writable(folder), "one that can be written, or be made")
    check_kind("data", data, Mnist, "what load_mnist() returns")
    weighted_layers(model)
    packable(make_permanent(model))
    for setting in settings:
        check_choice("setting", setting, SETTINGS)
    checked = Settings(**settings)  # which refuses what is not allowed, and gives Python's own numbers
    settings = {setting: getattr(checked, setting) for setting in settings}
    teaching = Teaching(teacher, check_data(data.train), check_data(data.validation), settings, folder)
    if teacher is not None:
        check_kind("teacher", teacher, nn.Module, "a network, or None")
        check_teacher(model, teacher, teaching.validation)
    return teaching


def _check_stages(model: nn.Module, stages: Sequence[Stage], folder: Path | None) -> None:
    fits = isinstance(stages, (list, tuple)) and len(stages) > 0
    fits = fits and all(callable(stage) and not isinstance(stage, type) for stage in stages)
    check_that("stages", stages, fits, "a list of stages, as in [Prune(0.9), Share(4)]")
    for stage in stages:
        if folder is not None and " at 0x" in repr(stage):
            raise ParameterError(
                "a stage that is to be kept in 'folder' must have a repr that says what "
                f"it does, as a dataclass has. Got {stage!r:.80}."
            )
        for argument, value in vars(stage).items() if isinstance(stage, BY_LAYER) else ():
            layers = channel_groups(model) if isinstance(stage, PruneUnits) else weights(model)
            for layer in value if isinstance(value, dict) else ():
                check_choice(f"layer in {argument} of {type(stage).__name__}", layer, list(layers))
        model = as_unpacked(stage.outline(model)) if isinstance(stage, Factorize) else model  # whose layers it renames


@dataclass
class Teaching:
    """The teacher, None for labels alone, the data, the settings of `train`, and the folder of finished stages.

    The teacher answers once, and only if something is fine-tuned.
    """

    teacher: nn.Module | None
    training: Checked
    validation: Checked
    settings: dict
    folder: Path | None

    @functools.cached_property
    def parts(self) -> list[tuple[Tensor, ...]]:
        """Return the training and the validation part, with the teacher's answers."""
        return [
            part if self.teacher is None else Checked(with_answers(self.teacher, part))
            for part in (self.training, self.validation)
        ]

    def fine_tuning(self, temperature: float, alpha: float, strength: float) -> FineTuning:
        """Return how a stage fine-tunes: `compress` says what becomes small."""
        taught = DistillationLoss(temperature, alpha)  # which says what is wrong with them, with or without a teacher
        loss = F.cross_entropy if self.teacher is None else taught
        penalty = (lambda model: strength * l2_penalty(model)) if strength else None

        def fine_tune(model: nn.Module, epochs: int) -> nn.Module:
            if epochs == 0:
                return model
            training, validation = self.parts
            settings = {"validation": validation, "epochs": epochs, "penalty": penalty, **self.settings}
            tuned, history = train(model, training, loss, **settings)
            if history.stopped == "interrupted":
                raise KeyboardInterrupt  # half a stage is none
            return tuned

        return RecipeTuning(fine_tune, self.training[0])

    def paths(self, model: nn.Module, stages: Sequence[Stage], *how: float) -> list[Path | None]:
        """Return for each stage a path in the folder, if any, that changes with whatever came before it."""
        if self.folder is None:
            return [None] * len(stages)
        before = self.digests(model, *how)
        keys = [cache_key({**before, "stages": repr(stages[:place])}) for place in range(1, len(stages) + 1)]
        return [self.folder / f"{place}_{key}.kdz" for place, key in enumerate(keys, 1)]

    def digests(self, model: nn.Module, *how: float) -> dict[str, Any]:
        """Return what changes with the networks, the data, the settings and the numbers of `how`."""
        networks = [make_permanent(each) for each in (model, self.teacher) if each is not None]
        settings = [*how, sorted(item for item in self.settings.items() if item[0] != "progress")]
        return {
            "start": [[str(each), _digest(_in_order(each))] for each in networks],
            "data": [_digest(part) for part in (self.training, self.validation)],
            "settings": repr(settings),
        }


def run_stages(
    model: nn.Module, teaching: Teaching, stages: Sequence[Stage], temperature: float, alpha: float, strength: float
) -> Iterator[tuple[Stage, nn.Module]]:
    """Yield each stage with the network that it made, from the folder where that was finished before."""
    fine_tune = teaching.fine_tuning(temperature, alpha, strength)
    paths = teaching.paths(model, stages, *map(float, (temperature, alpha, strength)))
    for stage, path in zip(stages, paths, strict=True):
        finished = path and _kept(path)
        if not finished:
            made = check_returned(f"stage {stage!r:.60}", stage(with_masks(make_permanent(model)), fine_tune))
            finished = as_unpacked(make_permanent(made)).eval()
            if path:
                save_packed(path, finished)
        model = finished
        yield stage, model


def _in_order(model: nn.Module) -> list[Tensor]:
    """Return a network's tensors as those of its file: by their names, and with no zero that has a minus sign."""
    return [tensor + 0 for _name, tensor in sorted(model.state_dict().items())]


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.numpy()).data)  # not tobytes: all images take a gigabyte, and again
    return digest.hexdigest()


def _kept(path: Path) -> nn.Module | None:
    """Return the network of a stage that was finished before, None where there is none; another file is set aside."""
    try:
        return load_packed(path) if path.exists() else None
    except StorageError:  # damaged, empty, of another schema
        set_aside(path)
        return None
