#!/usr/bin/env bash
# Run one round of Trajectory-Refined Distillation on SmolLM2-135M-Instruct and arithmetic word problems, on the CPU.
#
#   examples/quickstart.sh [DIRECTORY]     default: quickstart-run. The same command goes on after an interruption.
#
# ROWS, QUESTIONS and EPOCHS (192, 200, 2) make it smaller or larger.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

run=${1:-quickstart-run}
rows=${ROWS:-192} questions=${QUESTIONS:-200} epochs=${EPOCHS:-2}
# A model this small follows an example better than an instruction, so it gets other prompts than the built-in ones.
prompts=$trd_root/examples/quickstart
export TOKENIZERS_PARALLELISM=false
# The model is published in bfloat16, which many CPUs compute several times slower than float32.
compute=(--dtype float32)

score() { # MODEL DIRECTORY: greedy answers to problems that no training saw
    trd eval "$1" --bench "arithmetic:n=$questions,seed=2" --prompt "$prompts/student.jinja" \
        --temperature 0 --max-tokens 48 --batch-size 64 "${compute[@]}" --out "$run/$2" >/dev/null
}

mkdir -p "$run"
trd data make arithmetic --n "$rows" --seed 1 --out "$run/problems.parquet" >/dev/null

score smollm2-135m eval-before

trd sample --model smollm2-135m --problems "$run/problems.parquet" --prompt "$prompts/student.jinja" \
    --max-tokens 64 --batch-size 64 "${compute[@]}" --out "$run/y_o" |
    trd verify |
    trd refine --setting opsd --prompt "$prompts/refine.jinja" --temperature 0 --max-tokens 48 --batch-size 64 "${compute[@]}" --out "$run/y_r" |
    trd verify |
    trd distill --subset repaired --learning-rate 1e-4 --epochs "$epochs" --batch-size 8 "${compute[@]}" --out "$run/student" >/dev/null

score "$run/student" eval-after

python "$trd_root/examples/quickstart_table.py" "$run"
