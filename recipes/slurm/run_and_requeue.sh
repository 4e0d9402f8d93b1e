# Sourced by the sbatch files: starts $MODULE on all machines of the job with the recipe $1 and the overrides after it,
# and puts the job back into the queue once it has stopped for a signal.
export GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
export MAIN_ADDRESS MAIN_PORT
MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_ADDRESS=${MAIN_ADDRESS%%$'\n'*} # the first; a pipe to head may end the other side by SIGPIPE
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540 # seconds that a launcher leaves its processes to write their checkpoint

# The launcher takes the place of the shell: Slurm ends a step whose first process ends.
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$ACCELERATE_CONFIG" \
        --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * GPUS_PER_NODE)) \
        --machine_rank "$SLURM_NODEID" --rdzv_backend c10d \
        --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" \
        -m "$MODULE" --config "$@"' launch "$@" &
step=$!

stopped=
stop() {
    stopped=yes
    scancel --signal=TERM "$SLURM_JOB_ID" # all processes of the step, not this shell
}
trap stop USR1 TERM

# A trap ends `wait`, so it is called until the step itself is over.
status=0
while kill -0 "$step" 2>/dev/null; do
    wait "$step" && status=0 || status=$?
done
if [[ -n $stopped && $status -ne 0 ]]; then
    echo "stopped after a checkpoint: job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
