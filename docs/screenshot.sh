#!/usr/bin/env bash
# Runs the demo, then has a real browser take the README's pictures of it: docs/screenshot.sh [FOLDER]. Wants chromium on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
pictures=$(realpath "${1:-docs}")
python=.venv/bin/python
folder=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true; fi; rm -rf "$folder"' EXIT
.venv/bin/claim-dispatch demo --directory "$folder/demo"
port=$($python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PREFECT_HOME="$folder/demo/prefect" PREFECT_SERVER_UI_API_URL="http://127.0.0.1:$port/api" PREFECT_SERVER_ANALYTICS_ENABLED=false
$python -m prefect server start --host 127.0.0.1 --port "$port" >"$folder/server.log" 2>&1 &
server=$!
for _ in $(seq 60); do
  if $python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/api/health', timeout=2)" 2>/dev/null; then break; fi
  sleep 1
done
run=$($python - "http://127.0.0.1:$port/api/flow_runs/filter" <<'PY'
import json, sys, urllib.request
body = {"flows": {"name": {"any_": ["claim-dispatch"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), {"Content-Type": "application/json"})
print(max(json.load(urllib.request.urlopen(request)), key=lambda run: run["total_run_time"])["id"])
PY
)
shoot() {
  chromium --headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update \
    --disable-sync --force-prefers-reduced-motion --hide-scrollbars --virtual-time-budget=40000 --user-data-dir="$folder/browser" \
    --window-size="$2" --screenshot="$pictures/$1" "http://127.0.0.1:$port$3" 2>"$folder/browser.log"
}
shoot prefect-ui-flow-run.png 1500,500 "/runs/flow-run/$run"
shoot prefect-ui-runs.png 1500,1000 "/runs?tab=task-runs"
