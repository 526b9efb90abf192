"""The trainer's commands of ``trb``."""

COMMANDS = {
    "train": "distil the teacher into the student: collect, train, push, evaluate; resumes by itself",
    "report": "curves and a page of finished or running trainings",
}
"""Each name is a module of this package with ``run(argv) -> exit status``."""
