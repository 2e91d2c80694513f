"""Every lesson passes in Colab's environment, with the kit as the badge's cell installs it and no repository around."""

import re

import pytest

from benchmarks._reach_colab import COLAB, LESSONS, VERSIONS, lesson_troubles, python


def test_the_kit_and_colabs_own_packages_are_those_of_colab(folder):
    assert python(folder, "-c", "import kd_lab; print(kd_lab.__file__)").startswith(f"{COLAB}/lib/python3.13/")
    named, installed = map(versions, (VERSIONS.read_text(), python(folder, "-m", "pip", "freeze", "--all")))
    assert len(named) > 100 and named <= installed


def versions(text):
    """Return the lines such as numpy==2.1.3, of names as pip compares them."""
    lines = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {f"{re.sub('[._]', '-', name.lower())}=={version}" for name, version in lines}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_passes(lesson, folder):
    assert lesson_troubles(lesson, folder) == []
