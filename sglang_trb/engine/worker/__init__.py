"""Inside a step: both models' forwards, the sampler, the columns of a batch, the student's new weights."""
