"""Put on a server's path by a test: writes what `blend_step` saw and answered to TRB_PROBE_DIR, one file a step."""

import os
import pathlib
import uuid

if os.environ.get("TRB_PROBE_DIR"):
    import torch

    import sglang_trb.blend
    from sglang_trb.blend import step

    _blend_step = step.blend_step

    def recording_blend_step(student_BV, teacher_BV, controls, alignment, **options):
        rows = {"student": student_BV.clone(), "teacher": teacher_BV.clone(), "epsilon": controls.epsilon_B.clone()}
        rows |= {"rule": controls.rule_B.clone(), "size": options["valid_vocab_size"]}
        output = _blend_step(student_BV, teacher_BV, controls, alignment, **options)
        rows |= {"beta": output.beta_B, "kl": output.kl_B}
        torch.save(rows, pathlib.Path(os.environ["TRB_PROBE_DIR"]) / f"{uuid.uuid4().hex}.pt")
        return output

    step.blend_step = sglang_trb.blend.blend_step = recording_blend_step
