"""One distillation step and the loop around it.

`loss` divergence from hidden states, never all logits at once · `batches` rows to aligned tensors · `trainer` the loop
· `checkpoints` a directory that transformers and vLLM load.
"""
