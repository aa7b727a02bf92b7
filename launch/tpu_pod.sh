#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, from a machine with gcloud.
#
#   launch/tpu_pod.sh [--dry-run] TPU ZONE CONFIG WORKDIR [--config.KEY=VALUE ...]
#
# TPU          the slice's name (gcloud compute tpus tpu-vm create, or a queued resource)
# CONFIG       a file of configs/, such as configs/mvtec_ad.py:carpet
# WORKDIR      on a file system that all hosts share: Filestore (NFS), or a bucket by gcsfuse
# CODE         (environment) the checkout on every host, with its .venv; default ~/vae_attn
# MAX_RETRIES  (environment) how often a run that ended early is started again; default 100
#
# A run that was preempted, or lost a host, resumes from its newest checkpoint. A slice that is
# gone for good has to be created again; the same command then resumes the run.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
}

dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=yes
  shift
fi
[ $# -ge 4 ] || usage
tpu=$1 zone=$2 config=$3 workdir=$4
shift 4

printf -v arguments ' %q' "--config=$config" "--workdir=$workdir" "$@"
# shellcheck disable=SC2088  # The hosts expand it.
code=${CODE:-'~/vae_attn'}
remote="cd $code && exec .venv/bin/python -m vae_attn.main --distributed --stopped_exit_code=75"
remote+=$arguments
command=(gcloud compute tpus tpu-vm ssh "$tpu" "--zone=$zone" --worker=all "--command=$remote")

if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
trap 'exit 130' INT
for ((attempt = 0; attempt <= ${MAX_RETRIES:-100}; attempt++)); do
  status=0
  "${command[@]}" || status=$?
  # 0: done. 2: an error that no further attempt fixes.
  case $status in 0 | 2) exit "$status" ;; esac
  echo "ended with $status; retrying in ${RETRY_SECONDS:-30} s" >&2
  sleep "${RETRY_SECONDS:-30}"
done
exit "$status"
