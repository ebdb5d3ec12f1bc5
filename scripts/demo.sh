#!/usr/bin/env bash
# What `make up` does once labd is built: brings the lab up with two simulated GPUs, trains the sample, kills its worker, and
# shows that it resumes. A lab in which the sample has been trained is only shown.
set -euo pipefail
cd "$(dirname "$0")/.."
labd=$PWD/target/release/labd
dir=$PWD/.lab
config=$dir/labd.toml
mkdir -p "$dir"

if [[ ! -e $config ]]; then
    {
        echo "# Written by \`make up\`; yours to change."
        echo "[images.build]"
        # This machine's certificates: a package mirror behind a CA of its own is trusted in builds, too.
        if [[ -s /etc/ssl/certs/ca-certificates.crt ]]; then echo 'ca_bundle = "/etc/ssl/certs/ca-certificates.crt"'; fi
        if [[ -n ${PIP_INDEX_URL:-} ]]; then echo "pip_index_url = \"$PIP_INDEX_URL\""; fi
        if [[ -n ${GOPROXY:-} ]]; then echo "goproxy = \"$GOPROXY\""; fi
        if [[ -n ${https_proxy:-} ]]; then echo "https_proxy = \"$https_proxy\""; fi
        if [[ -n ${http_proxy:-} ]]; then echo "http_proxy = \"$http_proxy\""; fi
        if [[ -n ${no_proxy:-} ]]; then echo "no_proxy = \"$no_proxy\""; fi
    } >"$config"
fi

"$labd" --config "$config" up --simulate-gpus 2
job=sample
status() { "$labd" status --json; }
job_status() { status | python3 -c 'import json,sys; print(next((j["status"] for j in json.load(sys.stdin)["jobs"] if j["submission_id"] == sys.argv[1]), ""))' "$job"; }
lab=$(status | python3 -c 'import json,sys; print(json.load(sys.stdin)["labd"]["lab"])')
in_jupyter() { docker exec "$lab-jupyter" "$@"; }
logs() { in_jupyter ray job logs "$job" 2>/dev/null | sed 's/\x1b\[[0-9;]*m//g' | grep -oE '(starting fresh|resumed at epoch.*|epoch [0-9]+/[0-9]+ loss.*|done: .*)' || true; }

# The job API comes a moment after the dashboard; no answer is not "no such job".
for _ in $(seq 50); do [[ -n $(job_status) ]] && break; sleep 0.1; done
if [[ -n $(job_status) ]]; then
    echo; echo "The sample job is $(job_status); \`make down\` and \`make up\` keep it and everything else."
    exit 0
fi

echo; echo "Submitting samples/train.py as job \`$job\` ..."
docker cp -q samples "$lab-jupyter:/tmp/samples" 2>/dev/null || docker cp samples "$lab-jupyter:/tmp/samples" >/dev/null
in_jupyter ray job submit --no-wait --submission-id "$job" --working-dir /tmp/samples -- python train.py --name "$job" --epochs 30 >/dev/null 2>&1
wait_for() { # wait_for SECONDS PATTERN
    local deadline=$((SECONDS + $1))
    until logs | grep -qE "$2"; do
        ((SECONDS < deadline)) || { echo "the sample job did not get to: $2" >&2; exit 1; }
        sleep 1
    done
}
wait_for 90 'epoch 5/'
before=$(logs)
worker=$lab-ray-worker-$(($(grep -oE 'on [0-9.]+' <<<"$before" | tail -n 1 | grep -oE '[0-9]+$') - 20))
echo "$before" | tail -n 4
echo "--- SIGKILL of $worker, which trains it ---"
pid=$(docker inspect -f '{{.State.Pid}}' "$worker")
# An ended container's is 0, and a signal to it would be one to this script and its callers.
((pid > 0)) || { echo "$worker does not run" >&2; exit 1; }
kill -9 "$pid"
wait_for 90 'resumed at epoch'
wait_for 30 'epoch 2[0-9]/'
logs | sed -n '/resumed/,$p' | head -n 4
echo
"$labd" --config "$config" up
