"""The jobs of `benchmarks/run.py`, in the order of its table."""

from measuring import Job

from jobs import captioning, data_loading, decode, decode_tokens, evaluation, prefill, preprocess, train_step

JOBS: dict[str, Job] = {
    module.__name__.removeprefix("jobs."): module.JOB
    for module in (decode, preprocess, prefill, decode_tokens, train_step, evaluation, captioning, data_loading)
}
