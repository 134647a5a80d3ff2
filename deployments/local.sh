#!/bin/sh
# Everything on this machine without Docker: a Prefect server, the work pool, the action table, the deployment, a worker.
#   deployments/local.sh [PORT]        ends with Ctrl-C, and takes with it what it started
# The database is CLAIM_DISPATCH_DATABASE_URL, or the embedded SQLite file in Prefect's home directory.
set -eu

port=${1:-4200}
CLAIM_DISPATCH_HOME=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PREFECT_API_URL=http://127.0.0.1:$port/api
PREFECT_SERVER_UI_API_URL=$PREFECT_API_URL
PREFECT_SERVER_ANALYTICS_ENABLED=${PREFECT_SERVER_ANALYTICS_ENABLED:-false}
# Slots of concurrency limits outlive the server; in memory, its default, those of runs that die with it are never given back.
PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=${PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE:-prefect.server.concurrency.lease_storage.filesystem}
export CLAIM_DISPATCH_HOME PREFECT_API_URL PREFECT_SERVER_UI_API_URL PREFECT_SERVER_ANALYTICS_ENABLED PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE
cd "$CLAIM_DISPATCH_HOME"
# What `make` installed, unless an environment of yours is active.
if [ -z "${VIRTUAL_ENV:-}" ] && [ -d .venv ]; then PATH=$CLAIM_DISPATCH_HOME/.venv/bin:$PATH; fi

server='' worker=''

stop() {
    trap - EXIT
    trap '' INT TERM
    # The worker ends a claim flow that still runs with it; what was open comes back when its lease is over.
    for child in $worker $server; do
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    done
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

is_healthy() {
    python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$PREFECT_API_URL/health" 2>/dev/null
}

if is_healthy; then
    echo "port $port is taken: something answers at $PREFECT_API_URL already; give another port: $0 4201" >&2
    exit 1
fi

prefect server start --host 127.0.0.1 --port "$port" >/dev/null &
server=$!
waited=0
until is_healthy; do
    kill -0 "$server" 2>/dev/null || { echo "the Prefect server ended; run it alone to see why: prefect server start" >&2; exit 1; }
    [ "$waited" -lt 120 ] || { echo "the Prefect server did not come up within $waited s" >&2; exit 1; }
    sleep 1
    waited=$((waited + 1))
done

claim-dispatch db upgrade
prefect work-pool create claims --type process --overwrite
prefect --no-prompt deploy --all
# What a script starts in the background ignores SIGINT, and a Prefect worker that does so can't be stopped by SIGTERM either.
python3 -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])' \
    prefect worker start --pool claims --type process --limit 3 &
worker=$!

echo "Prefect UI: http://127.0.0.1:$port   Ctrl-C ends everything"
echo "try: claim-dispatch publish report.generate '{\"title\": \"Orders\", \"figures\": {\"open\": 3, \"paid\": 39}}'"
wait "$worker"
