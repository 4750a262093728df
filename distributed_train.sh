#!/usr/bin/env bash
# Train or evaluate with N processes on this machine: ./distributed_train.sh N DATA [flags]
# On several machines, set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT on each of them, or NNODES and RDZV_ENDPOINT.
set -euo pipefail
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 N DATA [flags], with N the number of processes on this machine; flags: stitchkit train --help" >&2
  exit 2
fi
nproc=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -z ${VIRTUAL_ENV:-} && -x $here/.venv/bin/python ]]; then
  python=$here/.venv/bin/python
fi
if [[ -n ${RDZV_ENDPOINT:-} ]]; then
  where=(--nnodes "${NNODES:-1}" --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-stitchkit}")
elif [[ ${NNODES:-1} != 1 ]]; then
  where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?}" --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}")
else
  where=(--standalone)
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m stitchkit.training.launcher "${where[@]}" --nproc-per-node "$nproc" -m stitchkit train "$@"
