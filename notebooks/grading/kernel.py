"""Run first in the kernel that grades a notebook: set its limits, and guard what the checker stands on.

Not imported but executed with builtins of its own (see `startup_code`), so that nothing a student changes changes this.
It is a fence for a classroom, not a sandbox: code that runs in the same process can in the end do anything. Grade
strangers' notebooks in a container.

Of the package it needs `kd_lab.exercises.grade(number, answer)`, which returns None if an answer passes and raises an
AssertionError with the reason otherwise; the checks are in modules `kd_lab.exercises.lesson_NN`.
"""

import builtins
import importlib
import json
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from hashlib import blake2b
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import psutil

LIBRARIES = ("builtins", "math", "random", "secrets", "copy", "torch", "torch.nn", "torch.nn.functional",
             "torch.linalg", "torch.testing", "numpy", "numpy.random", "numpy.linalg", "numpy.testing")  # fmt: skip
WRITING = {"open", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
KILLING = {"os.kill", "os.killpg"}
PRYING = {"sys._getframe", "sys._current_frames", "sys.settrace", "sys.setprofile", "gc.get_objects",
          "gc.get_referrers", "gc.get_referents", "resource.setrlimit", "resource.prlimit", "ctypes.dlopen",
          "ctypes.cdata", "ctypes.dlsym", "code.__new__"}  # fmt: skip
FRAMES = {"gi_frame", "tb_frame", "cr_frame", "ag_frame"}


def startup_code(settings: Path) -> str:
    """Return the line that IPython runs when the kernel starts; it leaves no name behind."""
    text = Path(__file__).read_text() + f"\nstart({str(settings)!r})\n"
    private = "{'__builtins__': dict(__import__('builtins').__dict__), '__name__': 'grading'}"
    return f"exec(compile({text!r}, 'grading', 'exec'), {private})\n"


def confirmation(number: str, key: bytes) -> str:
    """Return what proves that the true checker let an answer pass: nobody can write it who hasn't got the key."""
    return blake2b(number.encode(), key=key).hexdigest()


def start(settings: str) -> None:
    """Set limits, keep what the checker stands on, and put the guarded `grade` in its place."""
    given = json.loads(Path(settings).read_text())
    Path(settings).unlink()
    for kind, limit in (
        (resource.RLIMIT_DATA, given["bytes"]),
        (resource.RLIMIT_FSIZE, 2**30),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    events = os.open(given["events"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(kind: str, what: str, write=os.write, dumps=json.dumps) -> None:
        write(events, (dumps([kind, what]) + "\n").encode())

    importlib.import_module("torch._dynamo")  # puts another torch.manual_seed in place when an export imports it
    torch, training = (importlib.import_module(name) for name in ("torch", "kd_lab.training"))
    training._AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first of its class wraps the class's step
    exercises = importlib.import_module("kd_lab.exercises")
    for lesson in given["lessons"]:
        importlib.import_module(f"kd_lab.exercises.lesson_{lesson}")
    judging = sys.modules["kd_lab.exercises.judging"]
    shell, true_grade = sys.modules["IPython"].get_ipython(), exercises.grade
    public = {"true_call": judging.call, "__builtins__": vars(builtins)}
    exec(PUBLIC, public)
    judging.call = public["call"]
    for module in [module for name, module in sys.modules.items() if name.startswith("kd_lab.exercises")]:
        if vars(module).get("grade") is true_grade:
            module.grade = public["grade"]
    tools = Tools(shell)
    public |= {"notary": notary(bytes.fromhex(given["key"]), tools, log, true_grade), "guard": guard(tools, log)}
    next(public["notary"])
    _limit_output(given["output"], shell, log)
    shell.events.register("post_run_cell", _tidy(tools, log))
    shell.unobserve_all("exit_now")  # exit() would end the kernel a moment later, in another cell
    log("started", "")
    os._exit = sys.modules["posix"]._exit = _leave(os._exit)
    sys.addaudithook(_watch([os.path.realpath(path) for path in given["protected"]], log))


PUBLIC = '''
def grade(number, answer):
    """Raise an AssertionError with the reason unless an answer passes."""
    said = notary.send((number, answer))
    if said is not None:
        raise AssertionError(said)


def call(function, *arguments, **named):
    """Return what a student's function gives; one that changes the checker's tools while it runs does not pass."""
    result = true_call(function, *arguments, **named)
    said = next(guard)
    if said is not None:
        raise AssertionError(said)
    return result
'''  # what a student's code can reach of this


def guard(tools: "Tools", log: Callable) -> Iterator[str | None]:
    """Yield what was changed since the last time, in words, or None; it is put back."""
    while True:
        yield _changes(tools, log)


def notary(key: bytes, tools: "Tools", log: Callable, grade: Callable) -> Generator[str | None, tuple[str, Any], None]:
    """Judge answers, and confirm those that pass; the key is a generator's local, so no attribute leads to it."""
    said = None
    while True:
        number, answer = yield said
        said = _changes(tools, log) or _judged(grade, number, answer)
        said = _changes(tools, log) or said
        if said is None:
            log("confirmed", confirmation(number, key))


def _judged(grade: Callable, number: str, answer: Any) -> str | None:
    """Return why an answer doesn't pass, None if it does; warnings would look like errors to nbgrader."""
    try:
        with warnings.catch_warnings(), sys.modules["torch"]._C.DisableTorchFunctionSubclass():
            warnings.simplefilter("ignore")
            grade(number, answer)
    except BaseException as error:  # noqa: BLE001 a student's code may raise anything
        return str(error) or type(error).__name__
    return None


def _changes(tools: "Tools", log: Callable) -> str | None:
    """Undo and log what was changed of the checker's tools, and return it in words."""
    changed = sorted(set(tools.restore()))
    for name in changed:
        log("changed", name)
    return f"the checker's tools were changed: {', '.join(changed)}" if changed else None


class Tools:
    """What the checker stands on, as it was before any of the student's code ran."""

    def __init__(self, shell: Any):
        self.shell, self.own = shell, set(vars(shell))
        names = [name for name in sys.modules if name in LIBRARIES or name.partition(".")[0] == "kd_lab"]
        self.modules = {name: sys.modules[name] for name in names}
        self.kept = [(name, module, _contents(module)) for name, module in self.modules.items()]
        for owner in self._classes():
            self.kept.append((f"{owner.__module__}.{owner.__qualname__}", owner, _contents(owner)))
        exercises = sys.modules["kd_lab.exercises.judging"].EXERCISES
        self.dicts = [("EXERCISES", exercises, dict(exercises))]
        self.dicts += [(f"exercise {number}", vars(each), dict(vars(each))) for number, each in exercises.items()]
        manager = shell.input_transformer_manager
        lists = (shell.input_transformers_post, shell.ast_transformers, shell.input_transformers_cleanup,
                 manager.line_transforms, manager.token_transformers)  # fmt: skip
        self.lists = [(each, list(each)) for each in lists]

    def _classes(self) -> Iterator[type]:
        """Yield the classes whose methods can be changed: torch's tensor and module, and those of the package."""
        torch = self.modules["torch"]
        yield from (torch.Tensor, torch.nn.Module, torch.nn.Parameter, torch.nn.Linear, torch.nn.Conv2d)
        for name, module in self.modules.items():
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name and name.startswith("kd_lab"):
                    yield value

    def restore(self) -> Iterator[str]:
        """Put back whatever was changed, and yield its name; what is new is left alone, unless it hides a builtin."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
                yield f"sys.modules[{name!r}]"
        for label, owner, before in self.kept:
            yield from (f"{label}.{name}" for name in _restored(owner, before))
        for label, owner, before in self.dicts:
            if any(owner.get(name) is not value for name, value in before.items()):
                owner.update(before)
                yield label
        for owner, before in self.lists:
            if owner != before:
                owner[:] = before
                yield "IPython's transformers"
        for name in set(vars(self.shell)) - self.own:
            if callable(getattr(type(self.shell), name, None)):
                delattr(self.shell, name)
                yield f"get_ipython().{name}"
        yield from self._torch()

    def _torch(self) -> Iterator[str]:
        """Yield what is wrong with torch itself: a mode that takes its functions over, or a wrong answer."""
        torch = self.modules["torch"]
        for place in reversed(range(torch._C._len_torch_function_stack())):
            if type(torch._C._get_function_stack_at(place)).__module__ != "torch.utils._device":
                torch._C._pop_torch_function_stack()
                yield "a TorchFunctionMode"
        one, two = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
        same = torch.equal(one, two) or torch.allclose(one, two) or bool((one == two).all()) or bool((one > two).any())
        if same or not torch.equal(one, one.clone()):
            yield "torch itself"


def _contents(owner: Any) -> dict[str, tuple[Any, Any]]:
    """Return what can be called in a module or a class, the package's constants, and the code of its functions."""
    if isinstance(owner, ModuleType):
        own = owner.__name__.startswith("kd_lab")
        found = {name: value for name, value in vars(owner).items() if callable(value) or (own and name.isupper())}
    else:
        found = {name: value for each in reversed(owner.__mro__[:-1]) for name, value in vars(each).items()}
        found = {name: value for name, value in found.items() if callable(value) or isinstance(value, _WRAPPERS)}
    return {name: (value, _code(value)) for name, value in found.items() if name not in OF_IPYTHON}


OF_IPYTHON = {"input", "get_ipython", "display", "_"}  # builtins that it changes itself
_WRAPPERS = (property, staticmethod, classmethod)


def _function(value: Any) -> FunctionType | None:
    """Return the function in a property or a method."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return value if isinstance(value, FunctionType) else None


def _code(value: Any) -> tuple | None:
    """Return what can be changed in a function."""
    function = _function(value)
    return None if function is None else (function.__code__, function.__defaults__, function.__kwdefaults__)


def _restored(owner: Any, before: dict[str, tuple[Any, Any]]) -> Iterator[str]:
    """Put back what was changed in a module or a class, and yield its name."""
    module = isinstance(owner, ModuleType)
    now = (
        vars(owner)
        if module
        else {name: value for each in reversed(owner.__mro__[:-1]) for name, value in vars(each).items()}
    )
    for name, (value, code) in before.items():
        if now.get(name) is not value:
            _put(owner, name, value)
            yield name
        if code is not None and any(a is not b for a, b in zip(_code(value), code, strict=True)):
            function = _function(value)
            function.__code__, function.__defaults__, function.__kwdefaults__ = code
            yield name
    if module and owner.__name__.startswith("kd_lab"):
        for name in [name for name in now if name not in before and name in BUILTINS]:
            delattr(owner, name)
            yield name


BUILTINS = {name for name in vars(builtins) if not name.startswith("_")} - OF_IPYTHON


def _put(owner: Any, name: str, value: Any) -> None:
    """Give a module or a class its attribute back; one that it inherits is only uncovered."""
    if isinstance(owner, ModuleType):
        vars(owner)[name] = value
    elif any(vars(each).get(name) is value for each in owner.__mro__[1:]) and name in vars(owner):
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _tidy(tools: Tools, log: Callable) -> Callable:
    """Return what runs after each cell: no timer, alarm or changed tool outlives it."""
    depth = sys.getrecursionlimit()
    alarms = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1)}

    def tidy(result: Any) -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number, handler in alarms.items():
            signal.signal(number, handler)
        sys.setrecursionlimit(depth)
        _changes(tools, log)

    return tidy


def _limit_output(limit: int, shell: Any, log: Callable) -> None:
    """Stop a cell that prints more than so many characters."""
    stream = type(sys.stdout)
    write, printed = stream.write, [0]

    def limited(self: Any, text: str) -> int | None:
        printed[0] += len(text)
        if printed[0] > limit:
            if printed[0] - len(text) <= limit:
                log("flooded", "")
            raise RuntimeError(f"more than {limit / 1e6:g} MB printed")
        return write(self, text)

    stream.write = limited
    shell.events.register("pre_run_cell", lambda info: printed.__setitem__(0, 0))


def _leave(leave: Callable) -> Callable:
    """Return what a kernel has in place of os._exit: a thread could end it later, in another cell."""
    own = os.getpid()

    def leave_child(code: int) -> None:
        if os.getpid() != own:
            leave(code)
        raise PermissionError("not allowed while grading: to end the kernel")

    return leave_child


def _watch(protected: list[str], log: Callable) -> Callable:
    """Return an audit hook: no writing to the files of the package, no ending of processes, no prying."""
    own, busy = os.getpid(), threading.local()

    def refuse(what: str) -> None:
        if threading.current_thread() is threading.main_thread():  # a thread may be that of another cell
            log("refused", what)
        raise PermissionError(f"not allowed while grading: {what}")

    def look(event: str, args: tuple) -> None:
        if event in WRITING and _writes(event, args) and _inside(args, protected):
            refuse(f"to write {args[0]}")
        elif event in KILLING and not _is_child(args[0], own):
            refuse("to end a process")
        elif (event in PRYING or args[1] in FRAMES) and _of_student(sys._getframe(2).f_code.co_filename):
            refuse(f"to look into the checker ({event if event in PRYING else args[1]})")

    def hook(event: str, args: tuple) -> None:
        frame = event == "object.__getattr__" and args[1] in FRAMES
        if (event in WATCHED or frame) and not getattr(busy, "now", False):
            busy.now = True
            try:
                look(event, args)
            finally:
                busy.now = False

    return hook


WATCHED = WRITING | KILLING | PRYING


def _is_child(pid: int, own: int) -> bool:
    """Return whether this process has started another one."""
    try:
        return psutil.Process(pid).ppid() == own
    except Exception:  # noqa: BLE001 no such process, or none of ours
        return False


def _writes(event: str, args: tuple) -> bool:
    """Return whether a call changes a file."""
    return event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _inside(args: tuple, protected: list[str]) -> bool:
    """Return whether a path of a call lies in a protected folder; Python's own cache may be written."""
    paths = [os.path.realpath(os.fsdecode(each)) for each in args[:2] if isinstance(each, (str, bytes, os.PathLike))]
    return any(path.startswith(root + os.sep) and "__pycache__" not in path for path in paths for root in protected)


def _of_student(filename: str) -> bool:
    """Return whether code comes from a cell, or from a text that a cell executes."""
    return "ipykernel_" in filename or filename.startswith("<")
