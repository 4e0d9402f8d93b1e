#!/bin/bash
# Train a language model on several machines without a scheduler, by torchrun over ssh:
#   HOSTS="node1 node2" GPUS_PER_NODE=8 recipes/ssh/train_lm.sh RECIPE.yaml [--section.field value …]
# Run it in the folder of the project, which must be at the same path on all machines, as must output_dir. Ctrl-C ends
# the run after its step, with a checkpoint; the same command goes on from there.
set -euo pipefail

: "${1:?usage: HOSTS=\"node1 node2\" recipes/ssh/train_lm.sh RECIPE.yaml [--section.field value …]}"
read -ra hosts <<<"${HOSTS:?name the machines, the first one is the meeting point: HOSTS=\"node1 node2\"}"
run_id=${RUN_ID:-mmlm-$$}
command="cd $(printf %q "$PWD") && TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540 exec torchrun --nnodes ${#hosts[@]}"
command+=" --nproc_per_node ${GPUS_PER_NODE:-8} --rdzv_backend c10d --rdzv_id $run_id"
command+=" --rdzv_endpoint ${hosts[0]}:${MAIN_PORT:-29500} -m mmlm.train --config $(printf '%q ' "$@")"

launched=()
for host in "${hosts[@]}"; do
    ssh "$host" "$command" </dev/null &
    launched+=($!)
done

stop() { # the launchers pass it on to their processes
    for host in "${hosts[@]}"; do
        ssh "$host" "pkill -TERM -f -- '--rdzv_id $run_id '" </dev/null || true
    done
}
trap stop INT TERM

# A trap ends `wait`, so it is called until the launchers themselves are over.
status=0
for process in "${launched[@]}"; do
    while kill -0 "$process" 2>/dev/null; do
        wait "$process" || status=$?
    done
done
exit "$status"
