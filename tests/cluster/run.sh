#!/bin/bash
# make cluster-test: the Slurm tests and the long kill-and-resume check.
#
# Installs Debian's Slurm when it is missing (needs root and apt-get), starts a cluster of two nodes
# in a temporary folder, and ends it afterwards. KILLS=N sets how often kill_resume.py kills.

set -eu
cd "$(dirname "$0")/../.."
PYTHON="${PYTHON:-.venv/bin/python}"
PATH="$PATH:/usr/sbin:/sbin"

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "cluster-test needs slurmctld, slurmd and munged: as root, apt-get install slurm-wlm munge" >&2
        exit 1
    fi
    echo "[cluster-test 1/3] installing slurm-wlm and munge"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >/dev/null
fi

echo "[cluster-test 2/3] jobs on a Slurm of two nodes on this host"
AUTOSELECT_CLUSTER_TEST=1 "$PYTHON" -m pytest tests/cluster -v

echo "[cluster-test 3/3] kill -9 at ${KILLS:-50} random moments"
"$PYTHON" tests/cluster/kill_resume.py --kills "${KILLS:-50}"
