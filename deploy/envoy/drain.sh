#!/usr/bin/env bash
# Lets Envoy's calls end; Envoy itself ends at SIGTERM at once. A preStop hook in Kubernetes, which ends
# it when the Pod's grace period is over.
#
#     drain.sh [PORT OF THE ADMIN ADDRESS] [SECONDS IN WHICH NEW CONNECTIONS STILL COME]
#
# bash and nothing else: Envoy's image has no HTTP client, and the `distroless` one no shell either.
set -euo pipefail
port=${1:-9901} settling=${2:-5}

ask() {
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf '%s %s HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
    IFS= read -r -d '' -u 3 answer || true  # up to the end, which it calls a failure
    exec 3>&-
    [[ $answer == 'HTTP/1.1 200 '* ]]
}

ask POST '/drain_listeners?graceful'
sleep "$settling"
while ask GET '/stats?filter=^http.grpc.downstream_rq_active$' \
    && [[ ! $answer =~ downstream_rq_active:\ 0 ]]; do
    sleep 1
done
