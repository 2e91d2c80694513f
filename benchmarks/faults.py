"""Try at length what must never happen: half-saved files, silent damage, one network trained twice, panels piling up.

The tests run a small sample of each campaign; this one is recorded in results/faults.json.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import ipywidgets
import psutil
import torch
from IPython.core.interactiveshell import InteractiveShell
from tabulate import tabulate
from torchvision.datasets import MNIST
from traitlets.config import Config

from benchmarks import record
from kd_lab import checkpoints, data
from kd_lab.errors import DataError, KdLabError
from kd_lab.formats import load_network
from kd_lab.networks.zoo import build_model
from kd_lab.panels import PruningPanel
from kd_lab.storage import load_tensors, save_tensors

KILLS, FLIPS, ROUNDS, PROCESSES = 200, 500, 20, 8
EVENTS, RERUNS, WARM_UP = 10_000, 100, 5
CELL = """
from kd_lab.checkpoints import load_trained
from kd_lab.panels import PruningPanel
panel = PruningPanel(load_trained("lenet300"), mnist)
panel
"""


def run() -> dict[str, float]:
    """Run all campaigns, print and record what they counted."""
    figures = kill_during_saves(KILLS) | damage_checkpoints(FLIPS // 2)
    more = damage_data(FLIPS - FLIPS // 2)
    figures = {**figures, **{name: figures[name] + more[name] for name in more}, **race_to_train(ROUNDS)}
    figures |= move_slider(EVENTS) | rerun_cell(RERUNS)
    record("faults", {"processes": PROCESSES, "figures": figures})
    print(tabulate(figures.items(), ["figure", "count"]))
    return figures


def kill_during_saves(kills: int) -> dict[str, int]:
    """Kill a process again and again while it saves one of two networks; count the files that are neither."""
    states = [build_model("lenet300", seed).state_dict() for seed in (0, 1)]
    corrupt = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save_tensors(path, states[0], {"seed": 0})
        for _ in range(kills):
            kill_after(random.uniform(0, 0.05), lambda: save_for_ever(path, states))
            corrupt += not is_one_of(path, states)
    return {"faults.kills": kills, "faults.corrupt": corrupt}


def save_for_ever(path: Path, states: list[dict]) -> None:
    """Save the networks in turn until killed."""
    while True:
        for seed, state in enumerate(states):
            save_tensors(path, state, {"seed": seed})


def kill_after(delay: float, work) -> None:
    """Run work in a process of its own and kill -9 it after a delay in seconds."""
    child = fork(work)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def fork(work) -> int:
    """Run work in a forked process and return its id; it ends with status 0 only if the work returned."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)  # whatever came, the child must not go on with its parent's work
    return child


def is_one_of(path: Path, states: list[dict]) -> bool:
    """Tell whether a file holds, to the bit, the network that its metadata names."""
    try:
        tensors, metadata = load_tensors(path)
    except KdLabError:
        return False
    return all(torch.equal(tensor, tensors[name]) for name, tensor in states[metadata["seed"]].items())


def damage(content: bytes, attempt: int) -> bytes:
    """Flip one random bit (even attempts) or cut the content short (odd ones)."""
    place = random.randrange(len(content))
    if attempt % 2:
        return content[:place]
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


@contextmanager
def only_data_in(folder: Path):
    """Let kd_lab find MNIST only in a copy, without a mirror to fetch it from."""
    raw = folder / "data" / "MNIST" / "raw"
    shutil.copytree(data.mnist_folder(), raw, dirs_exist_ok=True)
    for name, _ in MNIST.resources:
        shutil.copy(data.REPOSITORY_DATA / "MNIST" / "raw" / name, raw)
    with (
        empty_cache(folder),
        mock.patch.object(data, "REPOSITORY_DATA", folder / "data"),
        mock.patch.object(MNIST, "mirrors", ["http://127.0.0.1:9/"]),
    ):
        yield raw


@contextmanager
def one_epoch_recipe(folder: Path, mnist: data.Mnist):
    """Let mlp128 be trained for one epoch, on data that is loaded already, into an empty cache."""
    quick = {"mlp128": {"epochs": 1, "learning_rate": 3e-3, "weight_decay": 0.0, "batch_size": 128}}
    with (
        empty_cache(folder),
        mock.patch.dict(checkpoints.RECIPES, quick),
        mock.patch.object(checkpoints, "load_mnist", lambda: mnist),
    ):
        yield


def empty_cache(folder: Path):
    """Let kd_lab use an empty cache folder."""
    return mock.patch.dict(os.environ, KD_LAB_CACHE=str(folder / "cache"))


def damage_checkpoints(attempts: int) -> dict[str, int]:
    """Damage a checkpoint again and again; count how often it loads all the same."""
    content = (checkpoints.SHIPPED / "mlp128.safetensors").read_bytes()
    silent = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlp128.safetensors"
        for attempt in range(attempts):
            path.write_bytes(damage(content, attempt))
            with suppress(KdLabError):
                load_network(path)
                silent += 1
    return {"faults.flips": attempts, "faults.silent": silent}


def damage_data(attempts: int) -> dict[str, int]:
    """Damage an unpacked file or an archive of MNIST again and again; count how often other bytes are accepted.

    An unpacked file is unpacked again from its archive; with a damaged archive and no mirror, nothing is loaded.
    """
    silent = 0
    with tempfile.TemporaryDirectory() as folder, only_data_in(Path(folder)) as raw:
        for attempt in range(attempts):
            name = random.choice(list(data.SHA256)) + random.choice(["", ".gz"])
            sound = (raw / name).read_bytes()
            (raw / name).write_bytes(damage(sound, attempt))
            if name.endswith(".gz"):
                (raw / name[:-3]).unlink()
            silent += accepts_damage()
            (raw / name).write_bytes(sound)
            shutil.rmtree(data.cache_folder(), ignore_errors=True)  # it may hold what this attempt could unpack
            data.mnist_folder()
    return {"faults.flips": attempts, "faults.silent": silent}


def accepts_damage() -> bool:
    """Tell whether MNIST is given although its unpacked files are not the published ones."""
    try:
        raw = data.mnist_folder()
    except DataError:
        return False
    return any(not data._matches(raw / name, digest, "sha256") for name, digest in data.SHA256.items())


def race_to_train(rounds: int) -> dict[str, int]:
    """Let PROCESSES ask for one missing network, in each round another; count those that trained it.

    In every second round the one that trains is killed meanwhile, so that another has to take over.
    """
    mnist = data.load_mnist()
    trainers, takeovers = [], 0
    with tempfile.TemporaryDirectory() as folder, one_epoch_recipe(Path(folder), mnist):
        for seed in range(1, rounds + 1):
            log = Path(folder) / f"{seed}.log"
            children = [fork(lambda seed=seed, log=log: ask(seed, log)) for _ in range(PROCESSES)]
            killed = kill_trainer(log) if seed % 2 == 0 else None
            ended = {child: os.waitpid(child, 0)[1] for child in children}
            trained = set(log.read_text().split()) - {str(killed)}
            assert all(status == 0 for child, status in ended.items() if child != killed), ended
            trainers.append(len(trained))
            takeovers += killed is not None
    return {
        "faults.rounds": rounds,
        "faults.trainers_max": max(trainers),
        "faults.trainers_min": min(trainers),
        "faults.takeovers": takeovers,
    }


def ask(seed: int, log: Path) -> None:
    """Ask for a network; whoever trains it writes its process id into the log first."""
    make = checkpoints.make_checkpoint

    def make_and_tell(*arguments) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} ")
        make(*arguments)

    checkpoints.make_checkpoint = make_and_tell
    checkpoints.load_trained("mlp128", seed)


def kill_trainer(log: Path) -> int:
    """Kill -9 the process that trains, once it has begun, and return its id."""
    while not log.exists() or not log.read_text():
        time.sleep(0.01)
    trainer = int(log.read_text().split()[0])
    os.kill(trainer, signal.SIGKILL)
    return trainer


def move_slider(events: int) -> dict[str, float]:
    """Move a panel's slider again and again, with a rest now and then; tell what memory and widgets grew by."""
    panel = PruningPanel(checkpoints.load_trained("lenet300"), data.load_mnist())
    for _ in range(WARM_UP):  # the allocator's first reserves, some 10 MB, are no growth
        sweep_slider(panel)
    with growth("slider") as figures:
        for _ in range(events // 100):
            sweep_slider(panel)
    panel.close()
    return {"faults.slider_events": events, **figures}


def sweep_slider(panel: PruningPanel) -> None:
    """Move the slider by 100 events from one end to the other, as fast as can be, and let it rest there."""
    for percent in range(100):
        panel.set(sparsity=percent / 101)
    panel.flush()


def rerun_cell(times: int) -> dict[str, float]:
    """Run a cell that makes a panel again and again, as IPython does; tell what memory and widgets grew by."""
    with ipython(mnist=data.load_mnist()) as shell:
        for _ in range(WARM_UP):
            run_cell(shell, CELL)
        with growth("rerun") as figures:
            for _ in range(times):
                run_cell(shell, CELL)
                shell.user_ns["panel"].flush()
        shell.user_ns["panel"].close()
    return {"faults.reruns": times, **figures}


@contextmanager
def ipython(**names):
    """Be an IPython session, with these names in it, which forgets its history."""
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.user_ns.update(names)
    yield shell
    InteractiveShell.clear_instance()


def run_cell(shell: InteractiveShell, code: str) -> None:
    """Run a cell as a notebook does and raise the error that it raises."""
    shell.run_cell(code, store_history=True).raise_error()


@contextmanager
def growth(name: str):
    """Measure by how many MB and widgets this process grows meanwhile, given in the dict that comes with it."""
    process, figures = psutil.Process(), {}
    memory, widgets = process.memory_info().rss, count_widgets()
    yield figures
    figures[f"faults.{name}_mb"] = round((process.memory_info().rss - memory) / 1e6, 1)
    figures[f"faults.{name}_widgets"] = count_widgets() - widgets


def count_widgets() -> int:
    """Return how many widgets are alive, in ipywidgets 7 as in 8."""
    module = ipywidgets.widgets.widget
    return len(module._instances if hasattr(module, "_instances") else module.Widget.widgets)
