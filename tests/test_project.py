"""The project keeps its own rules: floors, style, requirements in step, one place for its address."""

import base64
import io
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image

from notebooks import build

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = "https://github.com/someone/kd_lab"


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "from importlinter.cli import lint_imports_command as lint; lint()"],
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
    ],
    ids=["floors", "style", "format"],
)
def test_floors_and_style_hold(command):
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_conda_installs_what_pip_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python {PROJECT['requires-python']}", "pip"]
    assert pip["pip"] == ["-c constraints.txt", "-e .[lab,test]"]


def test_every_requirement_is_pinned():
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    lists = ["uv"], PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
    wanted = {re.split("[<>]", name)[0] for name in itertools.chain(*lists) if not name.startswith("kd_lab[")}
    assert wanted <= pinned


def test_the_readme_is_short_and_names_every_lesson_in_reading_order():
    readme = (ROOT / "README.md").read_text()
    lessons = [readme.index(f"(notebooks/{path.name})") for path in build.LESSONS]
    assert lessons == sorted(lessons) and lessons
    assert len(readme.split()) <= 1200


def test_no_line_of_a_lesson_is_cut_off_in_the_browser():
    for path in build.LESSONS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [line for cell in cells for line in cell.source.splitlines() if len(line) > 96] == []


def test_while_no_address_is_set_nothing_points_to_one():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    build.stamp(notebook, "", "00_start_here.ipynb")
    assert len(notebook.cells) == 1
    assert "https://" not in build.stamp_readme("<!-- colab -->\nold\n<!-- /colab -->", "")


def test_an_address_stamps_badge_and_install_cell_once():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    for _ in range(2):
        build.stamp(notebook, ADDRESS, "00_start_here.ipynb")
    _, badge, install = notebook.cells
    assert "colab.research.google.com/github/someone/kd_lab/blob/main/notebooks/00_start_here.ipynb" in badge.source
    assert f"%pip install --quiet --no-deps git+{ADDRESS}.git" in install.source
    nbformat.validate(notebook)
    readme = build.stamp_readme("<!-- colab -->\nold\n<!-- /colab -->", ADDRESS)
    assert "00_start_here" in readme and "old" not in readme


def test_what_is_committed_carries_the_address_that_is_set():
    readme = (ROOT / "README.md").read_text()
    assert readme == build.stamp_readme(readme, build.repository())
    for path in (*build.LESSONS, *build.SOLUTIONS):
        notebook = nbformat.read(path, as_version=4)
        cells = [cell.source for cell in notebook.cells]
        build.stamp(notebook, build.repository(), build.opened(path))
        assert [cell.source for cell in notebook.cells] == cells


def test_what_is_committed_of_a_lesson_was_run_and_is_small():
    assert [fault for path in build.LESSONS for fault in build.faults(path)] == []


def test_what_is_committed_of_a_solution_was_run_once_and_passed():
    for path in build.SOLUTIONS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
        assert said.count("public checks passed") == sum(cell.id.startswith("check-") for cell in cells)


def test_colab_opens_the_exercise_of_a_solution():
    assert build.opened(build.SOLUTIONS[0]) == f"exercises/{build.SOLUTIONS[0].name}"
    assert build.opened(build.LESSONS[0]) == build.LESSONS[0].name


def test_a_committed_panel_is_a_picture():
    outputs = [
        output.data
        for path in build.LESSONS
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
        if "Panel: " in output.get("data", {}).get("text/plain", "")
    ]
    assert outputs and all("image/png" in data for data in outputs)


@pytest.mark.parametrize("beside", [{"image/png": "iVBO"}, {"text/html": "<i>Run it.</i>"}, {}])
def test_of_a_live_panel_what_stands_beside_it_is_kept(beside):
    output = nbformat.v4.new_output("display_data", data={build.VIEW: {}, **beside})
    build.keep_pictures(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])]))
    assert output.data == beside or (not beside and build.VIEW in output.data)  # of any other widget nothing is left


@pytest.mark.parametrize(
    ("mode", "alpha", "kept"), [("RGBA", 255, "RGB"), ("RGBA", 100, "RGBA"), ("RGB", None, "RGB"), ("P", None, "P")]
)
def test_a_committed_picture_is_packed_and_shows_the_same(mode, alpha, kept):
    image = Image.radial_gradient("L").convert("RGB").convert(mode)
    if alpha is not None:
        image.putalpha(alpha)
    content = io.BytesIO()
    image.save(content, "PNG")
    output = nbformat.v4.new_output("display_data", data={"image/png": base64.b64encode(content.getvalue()).decode()})
    build.pack_pictures(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])]))
    packed = base64.b64decode(output.data["image/png"])
    shown = Image.open(io.BytesIO(packed))
    assert shown.mode == kept and len(packed) < len(content.getvalue())
    assert shown.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_what_must_not_be_committed_of_a_lesson_is_named(tmp_path):
    live = nbformat.v4.new_output("display_data", data={build.VIEW: {}})
    failed = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    wide = nbformat.v4.new_output("stream", text=f"{'a':60}  b\n{'-' * 60}  {'-' * 50}\n")
    cells = [nbformat.v4.new_code_cell("1", outputs=[live, failed, wide]), nbformat.v4.new_code_cell("#" * 400_000)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "00_lesson.ipynb")
    assert len(build.faults(tmp_path / "00_lesson.ipynb")) == 6


@pytest.mark.parametrize(
    ("prose", "found"),
    [
        (["## Takeaways\n\n- Much.\n\n## Exercises\n\n1. Count.\n2. Add."], 0),
        (["## Exercises", "Two:\n\n1. Count.\n2. Add."], 0),
        (["## Exercises\n\nEX"], 1),
        (["## Exercises\n\nEX\n\n## Further reading\n\n1. A paper."], 1),
        (["## Exercises\n\n1. "], 1),
        (["# Title"], 1),
    ],
    ids=["numbered", "two_cells", "placeholder", "another_section", "empty", "none"],
)
def test_a_lesson_without_exercises_is_named(tmp_path, prose, found):
    cells = [nbformat.v4.new_markdown_cell(source) for source in prose]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "00_lesson.ipynb")
    faults = build.faults(tmp_path / "00_lesson.ipynb")
    assert len(faults) == found and all("Exercises" in fault for fault in faults)


@pytest.mark.slow
def test_the_types_are_right():
    result = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
