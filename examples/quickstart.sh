#!/usr/bin/env bash
# Run one round of Trajectory-Refined Distillation on SmolLM2-135M-Instruct and arithmetic word problems, on the CPU.
#
#   examples/quickstart.sh [DIRECTORY [RECIPE]]     default: quickstart-run examples/quickstart/quickstart.toml
#
# The same command goes on after an interruption. A recipe that extends the default one makes it smaller or larger.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

run=${1:-quickstart-run}
recipe=${2:-$trd_root/examples/quickstart/quickstart.toml}
export TOKENIZERS_PARALLELISM=false

trd run "$recipe" --out "$run" >/dev/null
page=$(trd report "$run")

# Of the report's tables: scores, differences, verdicts before and after, and what each stage cost.
awk '/^#/ { shown = /^### (Arms by benchmarks|Differences|Verdicts|Rows, tokens)/ }
     shown && /^###/ { print "\n" substr($0, 5) "\n" }
     shown && /^\|/' "$run/report/report.md"
printf '\nThe page with all of it, every attempt beside its repair: %s\n' "$(realpath "$page")"
