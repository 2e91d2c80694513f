"""The records: the smallest files of five seeds within an error, kept in results/records.json and scored again.

`enter_record` writes that file, and nothing else may. Each record says on which board it stands and within which test
error, when it was entered, its files, the recipe in words, the command that makes them again, what was chosen on which
part among how many trials, its bytes, its mean test error with the 95 % t interval over the seeds, the test images that
each seed reads wrongly, and the paired difference to the record before it. What counts, `rules.py` says.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from kd_lab.compression.frontiers import frontier
from kd_lab.compression.rules import (
    LIMITS,
    OPEN,
    SEEDS,
    ErrorDifference,
    Scores,
    board_rules,
    boards_of,
    check_told,
    error_difference,
    general_rules,
    score_files,
)
from kd_lab.data import Mnist
from kd_lab.errors import (
    KdLabError,
    ParameterError,
    StorageError,
    check_choice,
    check_kind,
    check_number,
    check_that,
    check_whole_number,
    described,
    reason,
)
from kd_lab.formats.kdz import read_packed
from kd_lab.results import RESULTS
from kd_lab.storage import file_path, read_file, write_safely

FILE = "records.json"
SCHEMA = 1
TEST_IMAGES = 10_000
TURNED = 2  # test images of a file that another machine's rounding may turn
MAX_BYTES = 10_000_000  # of the file of records; a record takes about 4,000
NAME = re.compile(r"([\w-]+/)*[\w-]+\.kdz", re.ASCII)  # of a file below results/
TEXTS = ("recipe", "command", "remarks")


@dataclass(frozen=True)
class SizeRecord:
    """One record: the files of five seeds that were the smallest within an error when they were entered.

    `files` are below results/; `before` is the digest of the record before it and the paired difference to that, None
    for the first.
    """

    board: str
    limit: float
    entered: str
    files: Sequence[str]
    recipe: str
    command: str
    chosen_on: str
    trials: int
    remarks: str
    scores: Scores
    before: tuple[str, ErrorDifference] | None

    @property
    def digest(self) -> str:
        """Return the SHA-256 of what is kept of the record."""
        return hashlib.sha256(json.dumps(_content(self), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return f"the record of {self.board} within {self.limit:g} %"


def load_records() -> list[SizeRecord]:
    """Return the records in the order in which they were entered; one that can't be read is named and left out."""
    records = []
    for found in _read():
        if isinstance(found, SizeRecord):
            records.append(found)
        else:
            print(f"Left out: {found}")
    return records


def standing_record(records: Iterable[SizeRecord], board: str, limit: float) -> SizeRecord | None:
    """Return the smallest record within a limit: of the board's network, or of any on the open board.

    One counts where it was entered and at higher limits. Its test error may be below a lower one, too, but its setting
    wasn't chosen for that.
    """
    fitting = [each for each in on_board(records, board) if each.limit <= limit]
    return min(fitting, key=lambda each: each.scores.bytes, default=None)


def record_frontier(records: Iterable[SizeRecord], board: str) -> list[SizeRecord]:
    """Return the records of a board than which no other is both smaller and better, the smallest first."""
    return frontier(on_board(records, board), lambda each: (each.scores.bytes, each.scores.error))


def on_board(records: Iterable[SizeRecord], board: str) -> list[SizeRecord]:
    """Return the records whose network a board takes."""
    return [each for each in records if board in (OPEN, each.scores.network)]


def rescore(record: SizeRecord, records: Iterable[SizeRecord], data: Mnist) -> list[str]:
    """Read the files of a record again, and return in words what is not as it was recorded; nothing, if all is.

    `records` are those of the file: one of them is the record before it.
    """
    faults = []
    for seed in range(len(record.files)):
        try:
            read_again(record, seed, data)
        except KdLabError as error:
            faults.append(reason(error))
    if record.before is not None:
        digest, recorded = record.before
        before = next((each for each in records if each.digest == digest), None)
        if before is None:
            faults.append(f"{record}: the record before it can't be read, or was changed.")
        elif _rounded(error_difference(record.scores, before.scores)) != recorded:
            faults.append(f"{record}: the difference to the record before it is another.")
    return faults


def read_again(record: SizeRecord, seed: int, data: Mnist) -> Scores:
    """Return what the file of one seed of a record comes to.

    Raises a StorageError unless it has the bytes and the wrong test images that were recorded, but for images that the
    rounding of another machine may turn. Of fewer test images, those are compared.
    """
    name, recorded = record.files[seed], record.scores
    content = read_packed(_path_of(name))
    found = score_files([(f"results/{name}", content)], data)
    if (found.network, found.sizes) != (recorded.network, [recorded.sizes[seed]]):
        raise StorageError(
            f"{record}: results/{name} holds {found.network} in {len(content):,} bytes, but {recorded.network!r} in "
            f"{recorded.sizes[seed]:,} were recorded."
        )
    expected = set(recorded.on_first(found.images).wrong[seed])
    if len(expected ^ set(found.wrong[0])) > TURNED:
        raise StorageError(
            f"{record}: of {found.images:,} test images results/{name} reads others wrongly than were recorded, "
            f"{len(found.wrong[0])} and not {len(expected)}."
        )
    return found


def enter_record(
    board: str,
    limit: float,
    paths: Sequence[Path],
    data: Mnist,
    *,
    recipe: str,
    command: str,
    chosen_on: str,
    trials: int,
    remarks: str = "",
) -> SizeRecord:
    """Score the files of five seeds, which lie below results/, and enter them as a record, with today's date.

    `trials` counts those of the search whose setting was chosen, and `remarks` say what limits one's trust. Raises a
    ParameterError that names the rules which aren't met. A record of these files that stands there is left as it is.
    """
    limit = _check_claim(board, limit, data)
    trials = check_whole_number("trials", trials, "[1, 1e9]")
    check_told(command, chosen_on)
    for name, text in (("recipe", recipe), ("remarks", remarks)):
        check_kind(name, text, str, "text")
    files, records = _names_below_results(paths), _all_records()
    for each in records:
        if (each.board, each.limit, list(each.files)) == (board, limit, files):
            return each
    scores = score_files([(f"results/{name}", read_packed(_path_of(name))) for name in files], data)
    before = standing_record(records, board, limit)
    _refuse_unless_met(scores, board, limit, before, command, chosen_on)
    step = (before.digest, _rounded(error_difference(scores, before.scores))) if before else None
    told = (recipe, command, chosen_on, trials, remarks)
    made = SizeRecord(board, limit, date.today().isoformat(), files, *told, scores, step)
    _write([*records, made])
    return made


def _check_claim(board: str, limit: float, data: Mnist) -> float:
    """Return the limit of a board; raise a ParameterError where it has no such limit, or test images are missing."""
    check_choice("board", board, list(LIMITS))
    limit = float(check_number("limit", limit, "(0, 100)"))
    check_that("limit", limit, limit in LIMITS[board], f"one of {', '.join(map(str, LIMITS[board]))}")
    check_kind("data", data, Mnist, "what load_mnist() returns")
    check_that("data", data, len(data.test.labels) == TEST_IMAGES, f"MNIST with all {TEST_IMAGES:,} test images")
    return limit


def _refuse_unless_met(
    scores: Scores, board: str, limit: float, before: SizeRecord | None, command: str, chosen_on: str
) -> None:
    """Raise a ParameterError that names each rule which isn't met."""
    check_that("board", board, board in boards_of(scores.network), f"one of {', '.join(boards_of(scores.network))}")
    rules = general_rules(scores, command, chosen_on, readings=1)
    rules += board_rules(scores, board, limit, before.scores if before else None)
    if broken := [f"{rule.text}: {rule.why}" for rule in rules if not rule.met]:
        raise ParameterError(f"these files are no record. {'; '.join(broken)}.")


def _write(records: list[SizeRecord]) -> None:
    content = {"schema": SCHEMA, "records": [{**_content(each), "sha256": each.digest} for each in records]}
    write_safely(RESULTS / FILE, (json.dumps(content, indent=1) + "\n").encode())


def _content(record: SizeRecord) -> dict[str, Any]:
    """Return what is kept of a record, but for its digest."""
    scores, errors = record.scores, record.scores.errors
    digest, difference = record.before or ("", None)
    return {
        "board": record.board,
        "limit": record.limit,
        "entered": record.entered,
        "files": list(record.files),
        **{text: getattr(record, text) for text in TEXTS},
        "chosen_on": record.chosen_on,
        "trials": record.trials,
        "network": scores.network,
        "sizes": list(scores.sizes),
        "bytes": round(scores.bytes, 1),
        "error": round(errors.mean, 4),
        "interval": [round(end, 4) for end in errors.interval],
        "wrong": [" ".join(map(str, each)) for each in scores.wrong],
        "before": difference and {"sha256": digest, **difference._asdict()},
    }


def _rounded(difference: ErrorDifference) -> ErrorDifference:
    return ErrorDifference(*(round(each, 4) for each in difference))


def _all_records() -> list[SizeRecord]:
    """Return all records; raise a StorageError for one that can't be read, since writing would lose it."""
    found = _read()
    for each in found:
        if not isinstance(each, SizeRecord):
            raise StorageError(f"{each} Mend it first.")
    return [each for each in found if isinstance(each, SizeRecord)]


def _read() -> list[SizeRecord | str]:
    """Return each record, or in words why it can't be read."""
    if not (RESULTS / FILE).exists():
        return []
    try:
        parts = _parts(read_file(RESULTS / FILE, MAX_BYTES + 1))
    except StorageError as error:
        return [str(error)]
    return [_parsed(part, f"record {place} of results/{FILE}") for place, part in enumerate(parts, 1)]


def _parts(content: bytes) -> list:
    """Return the records of the file as JSON has them."""
    if len(content) > MAX_BYTES:
        raise StorageError(f"results/{FILE} has more than {MAX_BYTES:,} bytes.")
    try:
        found = json.loads(content)
        schema, parts = found["schema"], found["records"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StorageError(f"results/{FILE} can't be read: {reason(error)}") from error
    if schema != SCHEMA or not isinstance(parts, list):
        raise StorageError(f"results/{FILE} has schema {schema!r:.20}; this kd_lab reads schema {SCHEMA}.")
    return parts


def _parsed(part: Any, where: str) -> SizeRecord | str:
    """Return the record that a part of the file holds, or in words why it holds none."""
    try:
        record = _record(part)
        made = {**_content(record), "sha256": record.digest}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        return f"{where} holds none: {reason(error)}."
    keys = {**made, **part}.keys() - {"sha256"}
    differing = sorted(key for key in keys if key not in part or key not in made or part[key] != made[key])
    if differing:
        return f"{where} does not agree with itself in {', '.join(differing)}."
    return record if part.get("sha256") == record.digest else f"{where} was changed after it had been entered."


def _record(part: dict[str, Any]) -> SizeRecord:
    """Return the record that is described; raise one of the errors of bad input where it is none."""
    scores, before = _scores(part), part["before"]
    if before is not None:
        numbers = [check_number(name, before[name], "[-100, 100]") for name in ErrorDifference._fields]
        before = str(before["sha256"]), ErrorDifference(*numbers)
    board, limit = part["board"], part["limit"]
    check_choice("board", board, boards_of(scores.network))
    check_choice("chosen_on", part["chosen_on"], ["validation"])
    if limit not in LIMITS[board] or scores.error > limit:
        raise ValueError(f"its mean error, {scores.error:.2f} %, is not within a limit of {board}")
    entered = date.fromisoformat(part["entered"]).isoformat()
    trials = check_whole_number("trials", part["trials"], "[1, 1e9]")
    recipe, command, remarks = (str(part[text]) for text in TEXTS)
    files = [str(name) for name in part["files"]]
    return SizeRecord(board, limit, entered, files, recipe, command, part["chosen_on"], trials, remarks, scores, before)


def _scores(part: dict[str, Any]) -> Scores:
    """Return what the files of a record came to."""
    sizes = [check_whole_number("sizes", size, "[1, 1e9]") for size in part["sizes"]]
    wrong = [[int(image) for image in each.split()] for each in part["wrong"]]
    names = {name for name in part["files"] if re.fullmatch(NAME, name)}
    if not len(sizes) == len(wrong) == len(part["files"]) == len(names) >= SEEDS:
        raise ValueError(f"it must have {SEEDS} files or more below results/, and for each its size and wrong images")
    for each in wrong:
        if each != sorted(set(each)) or not all(0 <= image < TEST_IMAGES for image in each):
            raise ValueError(f"wrong images must be numbers from 0 to {TEST_IMAGES - 1:,}, each once, in order")
    return Scores(str(part["network"]), sizes, wrong, TEST_IMAGES)


def _path_of(name: str) -> Path:
    """Return the path of a record's file; raise a StorageError where none lies there."""
    path = RESULTS / name
    if not path.is_file() or not path.resolve().is_relative_to(RESULTS.resolve()):
        raise StorageError(f"results/{name} is missing, or no file.")
    return path


def _names_below_results(paths: Sequence[Path]) -> list[str]:
    """Return the names that a record gives some files."""
    check_kind("paths", paths, (list, tuple), "a list of paths, a file for each seed")
    try:
        names = [file_path(path).resolve().relative_to(RESULTS.resolve()).as_posix() for path in paths]
    except ValueError as error:
        raise ParameterError(f"'paths' must be files below {RESULTS}. Got {described(paths)}.") from error
    fits = names and all(re.fullmatch(NAME, name) for name in names)
    check_that("paths", paths, fits, "files with names of letters, digits, '_' and '-', as in my_files/seed_0.kdz")
    return names
