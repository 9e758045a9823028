"""The tasks that come with Glimt can be asked of any model, and are answered by nobody's luck."""

from collections import Counter

from glimt.builtin.heldout import heldout_file
from glimt.evaluation.questions import question_of
from glimt.evaluation.tasks import read_tasks
from glimt.evaluation.wishes import EvalWishes

PER_SKILL = 100


def test_there_are_a_hundred_of_each_skill_and_a_third_of_them_want_thoughts() -> None:
    tasks = read_tasks(heldout_file()).tasks
    skills = Counter(task.skill for task in tasks)
    assert len(skills) == 14
    assert set(skills.values()) == {PER_SKILL}
    thoughtful = Counter(task.skill for task in tasks if task.thinking)
    assert all(30 <= thoughtful[skill] <= 40 for skill in skills)


def test_every_task_can_be_put_as_a_question() -> None:
    file = read_tasks(heldout_file())
    for task in file.tasks:
        assert question_of(task, file.files, EvalWishes())


def test_no_answer_is_right_for_most_tasks_of_a_skill() -> None:
    tasks = read_tasks(heldout_file()).tasks
    for skill in {task.skill for task in tasks} - {"beyond"}:
        answers = Counter(str(task.answer) for task in tasks if task.skill == skill)
        assert answers.most_common(1)[0][1] <= 0.65 * PER_SKILL, skill
