"""One distillation step and the loop around it.

`reading` takes rows from their sets, `examples` makes examples of them, and `stored` keeps those in a file that all
processes map. `batches` turns them into aligned tensors, `model` computes hidden states and the loss on them, `trainer`
holds the loop, `state` saves and resumes it, and `checkpoints` writes a directory that transformers and vLLM load.
`rounds` makes one training of several commands, and `kept` hands a trainer from one to the next.
"""

# The log of a training run in its output directory: one line of JSON a step.
LOG = "train.jsonl"
# The directory of the saved states of a training, in its output directory.
STATES = "states"
