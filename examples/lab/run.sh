#!/usr/bin/env bash
# Test the papers' claims in the lab: make the models, run every recipe, and write a page with the claims and their verdicts.
#
#   examples/lab/run.sh [--quick] [DIRECTORY]     default: lab-run, with --quick lab-quick
#
# The same command goes on after an interruption. --quick has one round of OPD with fewer arms and seeds; MODELS=DIRECTORY takes
# models that are there.
# Seconds of each part are in DIRECTORY/times.tsv; of a part that was interrupted, those since.
set -euo pipefail
source "$(dirname "$0")/../setup.sh"

lab=$trd_root/examples/lab
quick= attempts=600 settings="opd opsd"
if [ "${1-}" = --quick ]; then
    quick=-quick attempts=300 settings=opd
    shift
fi
case "$#${1-}" in
    0 | 1[!-]*) ;;
    *) echo "error: expected [--quick] [DIRECTORY], got $*" >&2 && exit 1 ;;
esac
run=${1:-lab${quick:--run}}
mkdir -p "$run/problems" "$run/runs"
run=$(cd "$run" && pwd)
if [ -n "${MODELS-}" ]; then
    [ -L "$run/models" ] || [ ! -e "$run/models" ] || {
        echo "error: MODELS with $run/models, which holds models; expected another directory to run in" >&2
        exit 1
    }
    ln -sfn "$(cd "$MODELS" && pwd)" "$run/models"
fi
cd "$run"
export PYTHONPATH=$lab${PYTHONPATH:+:$PYTHONPATH} TOKENIZERS_PARALLELISM=false

timed() { # NAME COMMAND…: note how long a part took
    local name=$1 start=$SECONDS
    shift
    "$@"
    printf '%s\t%s\n' "$name" $((SECONDS - start)) >>times.tsv
}

# Models take both cores; stages of a recipe run two at a time, each on one.
[ -L models ] || timed models python "$lab/make_models.py" --out models
export OMP_NUM_THREADS=1

problems() { # NAME OPTIONS…: a problem set, none of which is in those made before
    local out=problems/$1.parquet
    shift
    [ -f "$out" ] || python "$lab/world.py" make "$@" --out "$out" >/dev/null
}
problems train --n 480 --seed 1
problems held-out --n 500 --seed 2 --apart-from problems/train.parquet
problems harder --n 500 --seed 3 --near-ties --apart-from problems/train.parquet

experiment() { # NAME: plan, run and report one recipe
    if [ ! -f "runs/$1.plan" ]; then
        trd plan "$lab/$1.toml" >"runs/.$1.plan" || { cat "runs/.$1.plan" >&2 && return 1; }
        grep -i warning "runs/.$1.plan" >&2 || true
        mv "runs/.$1.plan" "runs/$1.plan"
    fi
    timed "$1" trd run "$lab/$1.toml" --out "runs/${1%-quick}"
}
diagnosed() { # SETTING: what the teacher says along the first seed's rows, before any training
    local out=runs/$1/diagnosis prompt=$lab/prompts/vanilla-$1-q30.jinja sets
    timed "$1 rollouts" trd run "$lab/$1$quick.toml" --out "runs/$1" --until verify
    # The rollouts and the refined rows.
    mapfile -t sets < <(python "$lab/page.py" . --sets "$1")
    [ ${#sets[@]} = 2 ] || return 1
    timed "$1 diagnosis" trd diagnose --limit "$attempts" --onset "$lab/prompts/onset.txt" --prompt "$prompt" \
        --dtype float32 --out "$out" "${sets[@]}" >/dev/null
}
for setting in $settings; do
    diagnosed "$setting"
    experiment "$setting$quick"
    [ -n "$quick" ] || experiment "$setting-rounds"
done
if [ -z "$quick" ]; then
    for grid in knobs knobs-weak knobs-strong; do
        experiment "$grid"
    done
fi
reports() {
    printf '%s\n' runs/*/ | xargs -P 2 -I{} trd report {} >/dev/null
}
timed reports reports
timed page python "$lab/page.py" .
