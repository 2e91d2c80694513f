"""Grade a class: python -m notebooks.grading SUBMISSIONS RESULTS [--workers N] [--seconds S] [--gigabytes G].

SUBMISSIONS holds a folder for each student (STUDENT/01_magnitude_pruning.ipynb, with folders between or not, as
nbgrader collects them), or files as learning platforms hand them out (STUDENT__01_magnitude_pruning.ipynb), or both.
RESULTS gets grades.csv, with a row for each exercise and the reason, and a page for each student. Needs the extra
`classroom`.

Each notebook is graded by nbgrader, in a process and a folder of its own, within limits of time, memory and output.
What breaks a limit or touches the checker costs its exercise; the others are graded. This is a fence for a classroom,
not a sandbox: grade strangers' notebooks in a container.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1]


def grade_class(submissions: Path, results: Path, workers: int | None = None, sources: Path | None = None, **limits):
    """Grade all notebooks in a folder, write the results, and return what each was given.

    `sources` holds the solutions, in nbgrader's format; `limits` are those of attempts.Limits. After an interrupt
    the results have all that were graded until then. Raises a ValueError, before anything starts, if there is nothing
    to grade, nowhere to write, or no nbgrader.
    """
    if importlib.util.find_spec("nbgrader") is None:
        raise ValueError("nbgrader is not installed: pip install 'kd_lab[classroom]'")
    from notebooks.grading.attempts import PACKAGE, Lesson, Limits, grade_submission
    from notebooks.grading.results import write_results

    paths = sorted((sources or NOTEBOOKS / "solutions").glob("*.ipynb"))
    found = _found(submissions, [path.stem for path in paths])
    _check_writable(results)
    with tempfile.TemporaryDirectory(prefix="kd_lab_class_") as name:
        package = Path(name) / "package"
        shutil.copytree(PACKAGE, package)  # as it is now: a submission that changes the original changes only itself
        needed = {each.lesson for each in found}
        lessons = {path.stem: Lesson(path, Path(name)) for path in paths if path.stem in needed}
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            jobs = [pool.submit(grade_submission, each, lessons, Limits(**limits), package) for each in found]
            try:
                for number, job in enumerate(as_completed(jobs), 1):
                    print(f"{number} of {len(jobs)}: {_line(job.result())}", flush=True)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # written first, since a second Ctrl-C ends the wait
                graded = [job.result() for job in jobs if job.done() and not job.cancelled()]
                write_results(graded, results)
    return graded


def _found(submissions: Path, lessons: list[str]) -> list:
    """Return the submissions in a folder; raise a ValueError if there are none."""
    from notebooks.grading.submissions import find_submissions

    if not submissions.is_dir():
        raise ValueError(f"there is no folder {submissions}")
    found = find_submissions(submissions, lessons)
    if not found:
        raise ValueError(f"there is no notebook in {submissions}: STUDENT/NN_lesson.ipynb or STUDENT__NN_lesson.ipynb")
    return found


def _check_writable(folder: Path) -> None:
    """Make the folder of the results; raise a ValueError if nothing can be written into it, or grades are there."""
    if (folder / "grades.csv").exists():  # perhaps with a teacher's own points
        raise ValueError(f"{folder} has grades already: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"the results can't be written to {folder}: {error.strerror}") from error


def _line(graded) -> str:
    """Return a submission's points in one line."""
    got, most = (sum(getattr(item, name) for item in graded.items) for name in ("points", "of"))
    return f"{graded.submission.student}, {graded.submission.path.name}: {got:g} of {most:g}"


def main() -> None:
    """Read the command line and grade; an error is one line."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.grading", description=__doc__.partition("\n")[0])
    parser.add_argument("submissions", type=Path, help="the folder with the notebooks that were handed in")
    parser.add_argument("results", type=Path, help="the folder for grades.csv and the pages")
    parser.add_argument("--workers", type=int, help="notebooks at a time (default: as many as there are cores)")
    parser.add_argument("--seconds", type=int, default=60, help="for one cell (default: %(default)s)")
    parser.add_argument("--gigabytes", type=float, default=4, help="of memory (default: %(default)s)")
    given = parser.parse_args()
    try:
        grade_class(**vars(given))
    except ValueError as error:
        sys.exit(f"grading: {error}")
    except KeyboardInterrupt:
        sys.exit(f"grading: interrupted; what was graded until then is in {given.results}")


if __name__ == "__main__":
    main()
