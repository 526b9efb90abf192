"""Put on a server's path by a test; each variable turns on one probe.

TRB_PROBE_DIR: writes what `blend_step` saw and answered to this folder, one file a step.
TRB_PROBE_FAULTS: the requests whose id begins with ``fault-PLACE`` raise at that place of the scheduler's handling.
"""

import os
import pathlib
import uuid


def record_blend_steps():
    import torch

    import sglang_trb.blend
    from sglang_trb.blend import step

    _blend_step = step.blend_step

    def recording_blend_step(student_BV, teacher_BV, controls, alignment, **options):
        rows = {
            "student": student_BV.clone(),
            "teacher": teacher_BV.clone(),
            "epsilon": controls.settings["epsilon"].clone(),
        }
        rows |= {"rule": controls.rule_B.clone(), "size": options["valid_vocab_size"]}
        output = _blend_step(student_BV, teacher_BV, controls, alignment, **options)
        rows |= {"beta": output.record.beta, "kl": output.record.kl}
        torch.save(rows, pathlib.Path(os.environ["TRB_PROBE_DIR"]) / f"{uuid.uuid4().hex}.pt")
        return output

    step.blend_step = sglang_trb.blend.blend_step = recording_blend_step


if os.environ.get("TRB_PROBE_DIR"):
    record_blend_steps()
if os.environ.get("TRB_PROBE_FAULTS"):
    import trb_faults

    trb_faults.install()
