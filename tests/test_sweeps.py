"""Trials are kept when they are done, run again when a worker is lost, and no folder is that of two sweeps."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue

import distributed
import psutil
import pytest
import torch

from benchmarks import _reach_sweep
from kd_lab.errors import ParameterError, SetupError, StorageError, SweepError
from kd_lab.storage import append
from kd_lab.sweeps import cluster, kept, load_sweep, processes, sweep, work

TRIALS = [{"x": x} for x in range(4)]


@pytest.fixture
def here(tmp_path, in_this_process):
    """Run a sweep in this process, into one folder."""
    return partial(sweep, folder=tmp_path / "sweep", progress=False)


@pytest.fixture(scope="module")
def client():
    """A cluster in this process, whose one worker has several threads."""
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=3, dashboard_address=":0") as client:
        yield client


def square(x):
    return {"square": x * x, "threads": torch.get_num_threads()}


def marked(x, log, fails=None):
    append(Path(log), f"{x}\n".encode())
    if x == fails:
        raise ValueError(f"{x} is not mine")
    return x


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


def test_results_come_in_the_order_of_the_trials_and_are_kept(here, tmp_path):
    assert [found["square"] for found in here(square, TRIALS)] == [0, 1, 4, 9]
    kept = load_sweep(tmp_path / "sweep")
    assert [each.trial for each in kept] == TRIALS
    assert [each.result["square"] for each in kept] == [0, 1, 4, 9]
    assert all(each.error == each.traceback == "" and each.host == socket.gethostname() for each in kept)


def test_a_trial_has_one_thread_whatever_the_one_before_has_set(here):
    torch.set_num_threads(2)
    assert here(square, TRIALS[:1])[0]["threads"] == 1


def test_the_same_call_runs_nothing_again_in_whatever_order(here, tmp_path):
    trials = [{"x": x, "log": str(tmp_path / "log")} for x in range(4)]
    assert here(marked, trials) == [0, 1, 2, 3]
    assert here(marked, trials[::-1]) == [3, 2, 1, 0]
    assert (tmp_path / "log").read_text() == "0\n1\n2\n3\n"


def test_an_interrupted_sweep_goes_on_where_it_was(here, tmp_path, monkeypatch):
    settings, answer = [{"x": x, "log": str(tmp_path / "log")} for x in range(4)], work.answer

    def interrupted(payload, trial):
        if trial["x"] == 2:
            raise KeyboardInterrupt
        return answer(payload, trial)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(work, "answer", interrupted)
        here(marked, settings)
    assert here(marked, settings) == [0, 1, 2, 3]
    assert (tmp_path / "log").read_text() == "0\n1\n2\n3\n"


def test_a_trial_that_raises_is_kept_with_its_error_and_the_others_go_on(here, tmp_path):
    trials = [{"x": x, "log": str(tmp_path / "log"), "fails": 1} for x in range(3)]
    for _ in range(2):
        with pytest.raises(
            SweepError, match=r"^sweep\(\): 1 of 3 trials .*'x': 1.* ValueError: 1 is not mine"
        ) as raised:
            here(marked, trials)
        assert raised.value.results == [0, None, 2]
    failed = load_sweep(tmp_path / "sweep")[1]
    assert failed.error == "ValueError: 1 is not mine"
    assert "in marked" in failed.traceback
    with pytest.raises(SweepError):
        here(marked, trials, retry_failed=True)
    assert (tmp_path / "log").read_text() == "0\n1\n2\n1\n"


def odd(x):
    return [3, (1, {"loss": float("nan")}), {"loss": torch.ones(2)}, {(1, 2): 3}, sys.exit][x]


def test_what_can_not_be_stored_is_named_with_its_place(here, tmp_path):
    with pytest.raises(SweepError, match="3 of 5 trials gave no result"):
        here(odd, [{"x": x} for x in range(5)])
    errors = [each.error for each in load_sweep(tmp_path / "sweep")]
    assert errors[:2] == ["", ""]
    assert "['loss'] is Tensor of shape (2,)" in errors[2]
    assert "it has the key (1, 2)" in errors[3]
    assert "it is " in errors[4]


def test_nan_is_kept_as_nan_and_a_tuple_as_a_list(here):
    (found,) = here(odd, [{"x": 1}])
    assert found[0] == 1 and found[1]["loss"] != found[1]["loss"]
    assert repr(here(odd, [{"x": 1}])) == repr([found])


def test_a_function_that_ends_python_is_a_trial_that_raised(here):
    with pytest.raises(SweepError, match="SystemExit: 3"):
        here(lambda x: sys.exit(x), [{"x": 3}])


def cube(x):
    return x**3


def test_the_folder_of_another_sweep_is_refused_with_both_and_stays_as_it_was(here, tmp_path):
    here(square, TRIALS)
    before = files(tmp_path / "sweep")
    for function, trials, other, said in [
        (cube, TRIALS, {}, r"of the function 'test_sweeps.square', and this is one of 'test_sweeps.cube'"),
        (square, TRIALS[:3], {}, r"of 4 trials, and this is one of 3: only that one has \{'x': 3\}"),
        (square, [*TRIALS, {"x": 9}], {}, r"of 4 trials, and this is one of 5: only this one has \{'x': 9\}"),
        (square, TRIALS, {"version": "2"}, r"of the version '', and this is one of '2'"),
    ]:
        with pytest.raises(ParameterError, match=rf"sweep\(\): 'folder' must be new.*{said}"):
            here(function, trials, **other)
    assert files(tmp_path / "sweep") == before


def test_a_function_whose_text_has_changed_is_another_one(here, tmp_path, monkeypatch):
    def function_of(text):
        (tmp_path / "given.py").write_text(text)
        space = {"__name__": "given"}
        exec(compile(text, tmp_path / "given.py", "exec"), space)
        monkeypatch.setattr(kept.inspect, "getsource", lambda _: text)
        return space["f"]

    assert here(function_of("def f(x):\n    return x\n"), [{"x": 3}]) == [3]
    assert here(function_of("def f(x):\n    # the same\n    return (x)\n"), [{"x": 3}]) == [3]
    with pytest.raises(ParameterError, match=r"given.f as it was before its text was changed"):
        here(function_of("def f(x):\n    return x + 1\n"), [{"x": 3}])


def test_a_damaged_file_is_set_aside_and_its_trial_runs_again(here, tmp_path, capsys):
    folder = tmp_path / "sweep"
    here(square, TRIALS)
    before = files(folder)
    for name, content in before.items():
        if name.startswith("trial"):
            (folder / name).write_bytes(content.replace(b'"square": ', b'"square": 7'))
    (folder / "sweep.json").write_bytes(before["sweep.json"][:-20])
    assert [found["square"] for found in here(square, TRIALS)] == [0, 1, 4, 9]
    assert len(list(folder.glob("*.damaged"))) == 5
    assert capsys.readouterr().out.count("is damaged") == 5
    assert files(folder)["sweep.json"] == before["sweep.json"]


def test_a_folder_without_its_manifest_is_still_that_of_its_function(here, tmp_path):
    here(square, TRIALS)
    (tmp_path / "sweep" / "sweep.json").unlink()
    with pytest.raises(ParameterError, match=r"square.*cube"):
        here(cube, TRIALS)


def test_a_second_caller_waits_and_runs_nothing(here, tmp_path):
    trials = [{"x": x, "log": str(tmp_path / "log")} for x in range(20)]
    callers = [threading.Thread(target=here, args=(marked, trials)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(20))


def test_other_slips_are_refused_before_anything_is_there(here, tmp_path):
    opened = socket.socket()
    for said, function, trials, others in [
        ("'function' must be a function; .* Got 3", 3, TRIALS, {}),
        (
            "'function' must be a function; what else it needs goes into the trials",
            partial(marked, log="log"),
            TRIALS,
            {},
        ),
        ("'trials' must be one or more dicts", square, [], {}),
        ("'trials' must be one or more dicts", square, None, {}),
        (r"'trials\[0\]' must be a dict", square, {"x": 3}, {}),
        (r"trials\[1\], \{'y': 1\}, does not fit: missing a required argument: 'x'", square, [{"x": 1}, {"y": 1}], {}),
        (r"trials\[0\] and trials\[2\] are the same: \{'x': 0\}", square, [*TRIALS[:2], {"x": 0}], {}),
        (r"trials\[0\] must be of JSON values: \['x'\] is Tensor", square, [{"x": torch.ones(2)}], {}),
        ("can't be sent to another process: .*socket", lambda x: opened, TRIALS, {}),
        ("'workers' must be a whole number", square, TRIALS, {"workers": 0}),
        ("'timeout' must be a number", square, TRIALS, {"timeout": -1}),
        ("'backend' must be one of loky, .* Did you mean 'loky'", square, TRIALS, {"backend": "locky"}),
        ("'backend' must be 'loky', a Dask client", square, TRIALS, {"backend": 3}),
    ]:
        with pytest.raises(ParameterError, match=said):
            here(function, trials, **others)
    opened.close()
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "sweep").write_text("a file")
    with pytest.raises(StorageError, match="sweep can't be written"):
        here(square, TRIALS)


def test_a_folder_without_a_sweep_can_not_be_read(tmp_path):
    with pytest.raises(StorageError, match=r"sweep.json can't be read"):
        load_sweep(tmp_path)


def test_functions_of_any_kind_run_in_processes_with_one_thread(tmp_path):
    base = 10
    found = sweep(lambda x: [base + x, torch.get_num_threads(), os.getpid()], TRIALS, tmp_path, workers=1)
    assert [result[:2] for result in found] == [[10 + x, 1] for x in range(4)]
    assert os.getpid() not in {result[2] for result in found}


def test_a_cluster_gives_the_same(client, tmp_path):
    assert [each["square"] for each in sweep(square, TRIALS, tmp_path, client, progress=False)] == [0, 1, 4, 9]
    with pytest.raises(SweepError, match="1 of 4 trials gave no result"):
        sweep(lambda x: 1 / x, TRIALS, tmp_path / "other", client, progress=False)


def test_an_address_is_as_good_as_a_client(client, tmp_path):
    address = client.scheduler.address
    assert sweep(cube, TRIALS, tmp_path, address, progress=False) == [0, 1, 8, 27]
    assert client.status == "running"


def test_what_a_second_worker_is_given_is_not_begun_again(client, tmp_path):
    log = tmp_path / "log"
    arguments = work.packed(marked), {"x": 3, "log": str(log)}, "a sweep", "a trial"
    answers = [client.submit(cluster.work_in_cluster, *arguments, pure=False).result() for _ in range(2)]
    assert json.loads(answers[0])["result"] == 3
    assert answers[1] == ""
    assert log.read_text() == "3\n"


def test_a_trial_that_dask_gave_to_a_second_worker_runs_again_three_times(client, tmp_path, monkeypatch, capsys):
    log = tmp_path / "log"
    monkeypatch.setattr(cluster, "work_in_cluster", lambda *_: append(log, b".") or "")
    with pytest.raises(SweepError, match="its worker was lost 4 times; at last, "):
        sweep(square, TRIALS[:1], tmp_path, client, progress=False)
    assert log.read_text() == "...."
    assert capsys.readouterr().out.count("it runs again: {'x': 0}") == 3
    assert load_sweep(tmp_path) == []


def test_a_worker_that_loses_its_connection_is_a_lost_worker(client, tmp_path, monkeypatch):
    def cut(*_):
        raise TimeoutError("no answer")

    monkeypatch.setattr(cluster, "work_in_cluster", cut)
    with pytest.raises(SweepError, match=r"lost 4 times; at last, A worker lost its connection \(no answer\)"):
        sweep(square, TRIALS[:1], tmp_path, client, progress=False)


def test_a_cluster_that_can_not_run_trials_says_why_and_nothing_is_kept(client, tmp_path, monkeypatch):
    monkeypatch.setattr("kd_lab.sweeps.trials.packed", lambda _: b"no function")
    with pytest.raises(SetupError, match=rf"The function can't be loaded on {socket.gethostname()}"):
        sweep(square, TRIALS, tmp_path, client, progress=False)
    assert load_sweep(tmp_path) == []


def spell(x):
    start = time.monotonic()
    time.sleep(0.05)
    return [start, time.monotonic()]


def test_a_worker_with_several_threads_runs_one_trial_at_a_time(client, tmp_path):
    spells = sorted(sweep(spell, TRIALS, tmp_path, client, progress=False))
    assert all(end <= start for (_, end), (start, _) in pairwise(spells))


def test_a_folder_of_a_newer_kd_lab_is_left_alone(here, tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(kept, "SCHEMA", 2)
        here(square, TRIALS)
    with pytest.raises(StorageError, match=r"sweep.json has schema 2, .* Update kd_lab"):
        here(square, TRIALS)
    assert len(files(tmp_path / "sweep")) == 5


def test_a_cluster_without_workers_is_named_after_the_time_out(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK", 0.1)
    with (
        distributed.Client(processes=False, n_workers=0, dashboard_address=":0") as client,
        pytest.raises(SetupError, match=r"The Dask cluster at inproc://\S+ has had no worker for 0.2 s"),
    ):
        sweep(square, TRIALS, tmp_path, client, timeout=0.2, progress=False)


def test_an_address_that_does_not_answer_is_named(here, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address in (f"tcp://127.0.0.1:{silent.getsockname()[1]}", "tcp://127.0.0.1:9", "foo://a:1"):
            with pytest.raises(SetupError, match=f"No Dask scheduler answers at {address} .*waited 0.2 s at most"):
                here(square, TRIALS, backend=address, timeout=0.2)
    assert files(tmp_path / "sweep") == {}


def test_dask_is_needed_only_for_a_cluster(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SetupError, match="pip install dask distributed"):
        here(square, TRIALS, backend="tcp://127.0.0.1:9")
    assert len(here(square, TRIALS)) == 4


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_runs_again_and_is_named_at_last(tmp_path, monkeypatch):
    def dies(x, log):  # in here it travels itself: a worker need not import this file, and all that it imports
        append(Path(log), f"{x}\n".encode())
        if x == 1:
            os.kill(os.getpid(), 9)
        return x

    monkeypatch.setattr("kd_lab.sweeps.trials.RERUNS", 1)
    settings = [{"x": x, "log": str(tmp_path / "log")} for x in range(3)]
    with pytest.raises(SweepError, match=r"1 of 3 .*its worker was lost 2 times; at last, .* exit code -9") as raised:
        sweep(dies, settings, tmp_path / "sweep", workers=1, progress=False)
    assert raised.value.results == [0, None, 2]
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "1"]
    assert len(load_sweep(tmp_path / "sweep")) == 2


@pytest.mark.slow
def test_nothing_is_lost_or_runs_twice_amid_kills():
    assert _reach_sweep.kill_campaign(trials=12, workers=1, callers=1) == {"trials": 12, "lost": 0, "twice": 0}


@pytest.mark.slow
def test_workers_end_with_a_caller_that_is_killed_and_write_nothing(tmp_path):
    code = "import time; from kd_lab.sweeps import sweep; sweep(lambda x: time.sleep(x), [{'x': 30}], %r, workers=1)"
    caller = subprocess.Popen([sys.executable, "-c", code % str(tmp_path / "sweep")])
    while not (tmp_path / "sweep" / "sweep.json").exists():
        time.sleep(0.05)
    workers = _reach_sweep.workers_of(psutil.Process(caller.pid))
    caller.kill()
    caller.wait()
    assert not psutil.wait_procs(workers, timeout=120)[1]
    assert not list((tmp_path / "sweep").glob("trial*"))


def test_a_worker_begins_no_trial_once_its_caller_is_gone(monkeypatch):
    ended = []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    monkeypatch.setattr(processes.time, "sleep", lambda _: None)
    for sent in (TRIALS[:1], []):
        ours, theirs = Pipe()
        for trial in sent:
            ours.send(trial)
        ours.close()
        processes._listen(theirs, waiting := SimpleQueue())
        assert waiting.get() is None
    assert ended == [1, 1]


@pytest.mark.slow
def test_a_killed_machine_of_a_cluster_is_named_and_its_trial_runs_elsewhere(tmp_path, capfd):
    def dies_once(x, mark):
        if x == 0 and not os.path.exists(mark):
            Path(mark).write_text(str(os.getpid()))
            os.kill(os.getpid(), 9)
        return os.getpid()

    settings = [{"x": x, "mark": str(tmp_path / "mark")} for x in range(4)]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as machines:
        addresses = {worker.pid: worker.worker_address for worker in machines.workers.values()}
        found = sweep(dies_once, settings, tmp_path / "sweep", machines, progress=False)
    victim = int((tmp_path / "mark").read_text())
    assert len(found) == 4 and found[0] != victim
    assert f"The worker at {addresses[victim]} was lost; it runs again: {{'x': 0" in capfd.readouterr().out
