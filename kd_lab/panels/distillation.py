"""Distil a network live: train a small student again whenever the temperature moves."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import ipywidgets as widgets
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lab.checkpoints import student_recipe
from kd_lab.cost import count_parameters, file_bytes
from kd_lab.data import Mnist, Split
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.distillation.answers import check_teacher
from kd_lab.evaluation import Accuracy, PairedDifference, accuracy
from kd_lab.networks.layers import predict
from kd_lab.networks.zoo import small_student
from kd_lab.panels.distillation_picture import SIZE, Distillation, DistillationAnswer, DistillationPicture, Progress
from kd_lab.panels.measurement import dense_network, percent, points, table
from kd_lab.panels.panel import Panel, Shown, dropdown
from kd_lab.panels.slider import Slider, WholeSlider
from kd_lab.training import train_live

IMAGES = (500, 1000, 2000, 5000, 10_000, 20_000)  # and all that there are
CHUNK = 5000  # images that the teacher is asked about at a time, in a tenth of a second
KEPT = 20  # students; one of 300 units takes up to 5 MB until it is trained
VIEWS = TRAIN, SOFT_TARGETS = "train a student", "soft targets only"
TABLES_HEIGHT = 230


class DistillationPanel(Panel):
    """Train a student 784-width-10 live on a teacher's softened answers, beside one that has only the labels.

    Both start with the same weights and see the same batches, by `student_recipe`. `data` is what load_mnist() gives:
    the students see the first training images, and are measured on the validation part; only the button "Reveal test"
    reads the test part. A training that was left goes on where it was when its setting comes back. The view "soft
    targets only" trains nothing: only the answers move with the temperature.
    """

    def __init__(self, teacher: torch.nn.Module, data: Mnist):
        self._teacher = dense_network(teacher, data)
        check_teacher(small_student(), self._teacher, data.validation)
        self._data, self._costs = data, _costs(self._teacher)
        self._validation = with_answers(self._teacher, data.validation)
        self._train_logits = torch.empty(0, 10)  # the teacher's, as far as they were needed
        self._students: dict[tuple, Student] = {}  # the one used last stands last
        self._tests: dict[Distillation, list[Accuracy]] = {}
        self._drawing = DistillationPicture(*self._validation)
        most = len(data.train.labels)
        counts = [f"{count:,}" for count in (*(count for count in IMAGES if count < most), most)]
        controls = {
            "temperature": Slider(label="temperature", min=0.5, max=20, step=0.5, value=4),
            "alpha": Slider(label="alpha", step=0.05, value=0.1, layout=widgets.Layout(width="240px")),
            "width": WholeSlider(label="width", min=5, max=300, value=30, layout=widgets.Layout(width="240px")),
            "images": dropdown("images", counts, counts[min(2, len(counts) - 1)]),
            "digit": dropdown("digit", map(str, range(10)), "4"),
            "view": dropdown("view", VIEWS, TRAIN),
        }
        super().__init__(controls, SIZE, TABLES_HEIGHT, reveals=True)

    def measure(
        self, temperature: float, alpha: float, width: int, images: str, digit: str, view: str, reveal: bool = False
    ) -> Iterator[DistillationAnswer | None]:
        """Yield what is known, and then, as both students learn, what they know after every point of their curves."""
        setting = Distillation(temperature, alpha, width, int(images.replace(",", "")))
        losses = DistillationLoss(temperature, alpha), F.cross_entropy
        keys = [(loss, width, setting.images) for loss in losses]
        known = [self._students[key].progress if key in self._students else Progress() for key in keys]
        answer = DistillationAnswer(setting, int(digit), *known, view == TRAIN, self._tests.get(setting))
        yield answer
        if view == SOFT_TARGETS:
            return
        yield from self._ask_teacher(setting.images)
        students = [self._student(key) for key in keys]
        while learning := [student for student in students if not student.progress.finished]:
            self._teach(min(learning, key=lambda student: len(student.progress.accuracies)))  # the one behind
            answer = replace(answer, taught=students[0].progress, labelled=students[1].progress)
            yield answer
        if reveal and setting not in self._tests:
            networks = [self._teacher, *(student.network for student in students)]
            self._tests[setting] = [accuracy(network, self._data.test) for network in networks]
            yield replace(answer, test=self._tests[setting])

    def _ask_teacher(self, count: int) -> Iterator[None]:
        """Ask the teacher about the training images, so many, that it was not asked about before."""
        while (known := len(self._train_logits)) < count:
            more = predict(self._teacher, self._data.train.images[known : known + CHUNK])
            self._train_logits = torch.cat([self._train_logits, more])
            yield None

    def _student(self, key: tuple[Callable, int, int]) -> "Student":
        """Return the student of a setting as it was left, or a new one; the one unused for longest is forgotten."""
        self._students[key] = self._students.pop(key, None) or self._begin(*key)
        if len(self._students) > KEPT:
            del self._students[next(iter(self._students))]
        return self._students[key]

    def _begin(self, loss: Callable[..., Tensor], width: int, count: int) -> "Student":
        parts = slice(None) if isinstance(loss, DistillationLoss) else slice(2)  # labels alone: no teacher's logits
        data = [part[:count] for part in (*self._data.train, self._train_logits)][parts]
        training = train_live(
            small_student(width), tuple(data), loss, validation=self._validation[parts], **student_recipe(count)
        )
        return Student(training, self._data.validation)

    def _teach(self, student: "Student") -> None:
        try:
            student.learn()
        except Exception:
            self._students.clear()  # it can't go on, so it must begin again when its setting comes back
            raise

    def draw(self, answer: DistillationAnswer) -> Shown:
        """Draw the picture and write the table."""
        return Shown(self._drawing.title(answer), self._drawing.png(answer), self._table(answer))

    def _table(self, answer: DistillationAnswer) -> str:
        """Return how good teacher and students are, and how large."""
        labels, logits = self._validation[1:]
        right = [
            None if each is None else each.argmax(1) == labels
            for each in (logits, answer.taught.logits, answer.labelled.logits)
        ]
        difference = points(PairedDifference.of(*right[1:])) if all(each is not None for each in right) else "…"
        rows = [
            ["accuracy", *("…" if each is None else percent(Accuracy.of(each)) for each in right)],
            ["taught less labels, points", "", difference, ""],
            ["test part", *(map(percent, answer.test) if answer.test else ["", "not read for this setting", ""])],
            ["settings tested so far", "", len(self._tests), ""],
            *(
                [name, f"{teacher:,}", *[f"{student:,}"] * 2]
                for name, teacher, student in zip(
                    ("parameters", "bytes of the file"), self._costs, _student_costs(answer.setting.width), strict=True
                )
            ),
        ]
        headers = [f"{len(labels):,} validation images", "teacher", "student, taught", "student, on labels"]
        return f"<div style='line-height: 1.4'>{table(rows, headers)}</div>"


class Student:
    """Hold a training that goes on a little at each call, and how far it has come."""

    def __init__(self, training: Iterator, validation: Split):
        self._training, self._validation = training, validation
        self.network = None
        self.progress = Progress()

    def learn(self) -> None:
        """Learn until the next point of the curve; after the last, take the weights of the best."""
        self.network, history = next(self._training)
        logits = predict(self.network, self._validation.images)
        if history.seconds:  # it is over
            self._training = None  # which holds the optimizer
            self.progress = replace(self.progress, logits=logits, kept=history.best_epoch)
        else:
            value = Accuracy.of(logits.argmax(1) == self._validation.labels).value
            self.progress = Progress((*self.progress.accuracies, value), logits)


def _costs(network: torch.nn.Module) -> tuple[int, int]:
    return count_parameters(network), file_bytes(network)


@functools.cache
def _student_costs(width: int) -> tuple[int, int]:
    return _costs(small_student(width))
