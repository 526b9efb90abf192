"""The trainer's commands of ``trb``."""

COMMANDS = {
    "train": "distil the teacher into the student: collect, train, push, evaluate; resumes by itself",
    "evaluate": "pass@1 of a run's checkpoint, with its interval",
    "sweep": "trainings that differ in chosen fields, and the best checkpoint of each",
    "report": "curves and a page of finished or running trainings",
}
"""Each name is a module of this package with ``run(argv) -> exit status``."""
